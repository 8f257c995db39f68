"""What a user most likely meant is what the next command does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ducat_serve.cli.main import run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    save_file({"weight": np.zeros(3, dtype=np.float32)}, tmp_path / "timm.safetensors")
    (tmp_path / "their.pth").write_bytes(b"a pickle")
    (tmp_path / "their.onnx").write_bytes(b"no seal behind this")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "code", "meant"),
    [
        ("evaluate timm.safetensors", 4, "ducat import torchvision:NAME --pretrained FILE"),
        ("export their.pth", 4, "ducat import torchvision:NAME --pretrained FILE"),
        ("inspect their.onnx", 4, "ducat evaluate their.onnx --input NCHW"),
        ("train --dataset photos", 2, "--dataset folder:photos"),
        ("train --dataset CIFAR10", 2, "Did you mean 'cifar10'?"),
        ("train --dataset digits --network resnet50", 2, "torchvision:resnet50"),
        ("train --dataset digits --learning-rate 1", 2, "Here it is --lr."),
        ("export digits-small --format onnx", 2, "Here it is --onnx."),
        ("evaluate digits-small --bar clean=80", 2, "shares, not per cent"),
        ("predict digits-small https://example.org/photo.jpg", 4, "curl -s URL | ducat predict"),
    ],
)
def test_the_next_command_is_the_one_that_was_meant(
    command: str, code: int, meant: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del here
    assert run(command.split()) == code
    assert meant in " ".join(capsys.readouterr().err.split())
