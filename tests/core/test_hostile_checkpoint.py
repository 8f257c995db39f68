"""safetensors files made to harm: each is an error of ours, in every command, and takes no memory to speak of."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from ducat_serve import deployed
from ducat_serve.checkpoint import read_checkpoint
from ducat_serve.cli.main import run
from ducat_serve.deployed import load
from ducat_serve.errors import DataError, VerificationError
from ducat_serve.networks import create_network
from ducat_serve.spec import METADATA_KEY
from tests.support.checkpoints import SPEC, Weights, forged, untrained


def file_of(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(dtype: str, shape: list[int], *offsets: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def with_spec(**tensors: object) -> dict[str, object]:
    return {"__metadata__": {METADATA_KEY: SPEC.to_json()}, **tensors}


FILES = {
    "a header of 8 exabytes": file_of({}, length=2**63),
    "a header beyond the end": file_of({}, length=99_000_000),
    "brackets in brackets": file_of(b"[" * 100_000),
    "text that is none": file_of(b'{"\xff": 1}'),
    "metadata that is a number": file_of({"__metadata__": {METADATA_KEY: 3}}),
    "a ModelSpec that is no JSON": file_of({"__metadata__": {METADATA_KEY: "{"}}),
    "overlapping": file_of(with_spec(a=tensor("F32", [2], 0, 8), b=tensor("F32", [2], 4, 12)), bytes(12)),
    "negative": file_of(with_spec(a=tensor("F32", [-1], 0, 4)), bytes(4)),
    "too large to count": file_of(with_spec(a=tensor("F32", [2**62, 4], 0, 0))),
    "larger than the file": file_of(with_spec(a=tensor("F32", [2**40], 0, 2**42))),
    "empty and endless": file_of(with_spec(a=tensor("F32", [0, 2**62], 0, 0))),
    "empty": file_of(with_spec(a=tensor("F32", [0], 0, 0))),
    "100 dimensions": file_of(with_spec(a=tensor("F32", [1] * 100, 0, 4)), bytes(4)),
    **{
        dtype: file_of(with_spec(a=tensor(dtype, [2], 0, 2 * size)), bytes(2 * size))
        for dtype, size in (
            ("BF16", 2), ("F16", 2), ("F64", 8), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F8_E8M0", 1), ("F4", 1),
            ("C64", 8), ("BOOL", 1), ("U8", 1), ("U64", 8), ("X", 1),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_header(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[name])
    with pytest.raises((DataError, VerificationError), match=r"model\.safetensors"):
        read_checkpoint(path)


@pytest.fixture
def weights() -> Weights:
    return untrained()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(value: float, weights: Weights, tmp_path: Path) -> None:
    weights["fc.bias"] = np.array([0, value], np.float32)
    with pytest.raises(VerificationError, match=r"'fc\.bias' holds NaN or infinite numbers"):
        load(forged(tmp_path / "m.safetensors", weights))


def test_an_empty_tensor(weights: Weights, tmp_path: Path) -> None:
    weights["fc.bias"] = np.zeros(0, np.float32)
    with pytest.raises(VerificationError, match=r"'fc\.bias' is empty"):
        load(forged(tmp_path / "m.safetensors", weights))


def test_whole_numbers_are_not_converted_to_weights(weights: Weights, tmp_path: Path) -> None:
    weights["fc.bias"] = np.zeros(2, np.int64)
    with pytest.raises(VerificationError, match=r"'fc\.bias' is int64, expected float32"):
        load(forged(tmp_path / "m.safetensors", weights))


def test_a_head_beyond_all_memory_is_never_made(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million labels and a small head: the network of the spec would take hundreds of megabytes."""
    made_on = []

    def create(*arguments: Any, **named: Any) -> nn.Module:
        network = create_network(*arguments, **named)
        made_on.append({tensor.device.type for tensor in network.state_dict().values()})
        return network

    monkeypatch.setattr(deployed, "create_network", create)
    path = forged(tmp_path / "m.safetensors", weights, num_classes=10**6, labels=("",) * 10**6)
    with pytest.raises(VerificationError, match=r"'fc\.bias' is \(2,\), expected \(1000000,\)"):
        load(path)
    assert made_on == [{"meta"}]  # where tensors have shapes and no memory


def test_a_network_of_the_future(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="Unknown network 'resnet-large'") as caught:
        load(forged(tmp_path / "m.safetensors", weights, network="resnet-large"))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": (0, 8)}, "image_size"),
        ({"image_size": (8, -8)}, "image_size"),
        ({"image_size": (100_000, 100_000)}, "image_size"),
        ({"normalisation": {"mean": (0.5,) * 3, "std": (0.0, 1.0, 1.0)}}, "std"),
        ({"normalisation": {"mean": (0.5,) * 3, "std": (-1.0, 1.0, 1.0)}}, "std"),
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_numbers_of_the_spec_that_make_no_sense(
    changes: dict[str, object], words: str, weights: Weights, tmp_path: Path
) -> None:
    with pytest.raises(VerificationError, match=words):
        read_checkpoint(forged(tmp_path / "m.safetensors", weights, **changes))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["BF16", "empty and endless", "overlapping", "a header of 8 exabytes"])
@pytest.mark.parametrize("command", ["inspect", "evaluate", "export", "predict"])
def test_every_command_says_so(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[name])
    arguments = [str(path), *(["image.png"] if command == "predict" else [])]
    assert run([command, *arguments]) in (3, 4)
    error = capsys.readouterr().err
    assert str(path) in error
    assert "report it" not in error
