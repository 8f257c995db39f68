"""Networks of others through everything: trained, measured, exported with parity, asked, served."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from ducat_serve.networks import allowed
from service.application import create_app
from service.models.registry import Models
from service.settings import Settings
from tests.support.http_client import is_ready, predictions, send, until
from tests.support.image_folders import write_colours

pytestmark = pytest.mark.integration

FEW = ["--epochs", "2", "--ducat-start", "2", "--attack-steps", "1", "--batch-size", "8", "--lr", "0.01"]
ON = ["--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_colours(folder, size=40)
    return folder


@pytest.mark.parametrize(
    "network",
    [
        "timm:test_vit",
        pytest.param("timm:test_convnext", marks=pytest.mark.extended),
        pytest.param("torchvision:resnet18", marks=pytest.mark.extended),
    ],
)
def test_the_whole_way(
    network: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BatchNorm, attention with LayerNorm and GELU, and LayerNorm over channels: each with dummies."""
    folder = tmp_path / "run"
    data = ["--dataset", f"folder:{photos}", "--image-size", "32"]
    assert run(["train", *data, "--network", network, *FEW, *ON, "--out", str(folder)]) == 0
    spec = read_spec(folder / "model.safetensors")
    assert spec.network_source is not None
    assert (spec.network, spec.num_logits, spec.network_source.package) == (network, 6, network.split(":")[0])
    assert run(["evaluate", str(folder), "--attack", "pgd", *ON]) == 0
    assert run(["export", str(folder), "--precision", "float16"]) == 0
    capsys.readouterr()
    assert run(["export", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"]["real_images"] > 0
    card = (folder / "model.md").read_text()
    assert spec.network_source.rebuild in card
    photo = photos / "test" / "red" / "0.jpg"
    assert run(["predict", str(folder / "model.onnx"), str(photo), "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    with TestClient(create_app(Models(Settings(model=folder / "model.onnx")))) as client:
        until(lambda: is_ready(client))
        served = predictions(send(client, photo.read_bytes(), filename="photo.jpg", kind="image/jpeg"))
    assert served[0]["label"] == asked["predictions"][0]["label"]


def next_command(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The arguments of the command that was named last as the next one."""
    line = capsys.readouterr().err.rpartition("Next: ducat")[2].splitlines()[0]
    return shlex.split(line.partition(", or")[0])


SOURCE = """
from torch import nn

def make(outputs):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.GELU(), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs),
    )
"""


def test_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With dropout, interrupted and resumed it is the same run; its code is imported only where it is named.

    Each command names it in the one that it says comes next.
    """
    (tmp_path / "mine.py").write_text(SOURCE)
    name, here = ["--network", "mine:make"], ["--import-from", str(tmp_path)]
    flags = ["--dataset", "digits", "--epochs", "1", "--ducat", "off", "--attack-steps", "1", *ON]
    digests = []
    for folder in (tmp_path / "two", tmp_path / "one"):
        monkeypatch.setattr(allowed, "_names", set())
        assert run(["train", *flags, *name, *here, "--out", str(folder)]) == 0
        digests.append(read_spec(folder / "model.safetensors").weights_digest)
    assert digests[0] == digests[1]
    monkeypatch.setattr(allowed, "_names", set())
    assert run(["export", str(tmp_path / "one")]) == 3
    assert run([*next_command(capsys), "--attack", "pgd", *ON]) == 0
    assert run(next_command(capsys)) == 0
    assert run(["train", *flags, *name, *here, "--out", str(tmp_path / "one")]) == 2
    assert next_command(capsys) == ["train", "--resume", str(tmp_path / "one"), *name, *here]
    # The ONNX file needs no word of anybody: it holds the network itself.
    monkeypatch.setattr(allowed, "_names", set())
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "png")
    (tmp_path / "image.png").write_bytes(image.getvalue())
    assert run(["predict", str(tmp_path / "one" / "model.onnx"), str(tmp_path / "image.png")]) == 0
