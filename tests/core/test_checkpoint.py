"""`model.safetensors` and its ModelSpec: round trip, stable bytes, and every way to damage one."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ducat_serve.checkpoint import read_checkpoint, read_spec, weights_digest, write_checkpoint
from ducat_serve.deployed import build_classifier, load, load_weights
from ducat_serve.errors import DataError, DucatError, UsageError, VerificationError
from ducat_serve.pairs import fold_logits
from ducat_serve.spec import ModelSpec


def test_round_trip_and_folded_or_not(checkpoint: Path) -> None:
    folded, raw = load(checkpoint), load(checkpoint, folded=False)
    images = torch.rand(4, 3, 8, 8)
    assert folded.spec == raw.spec == read_spec(checkpoint)
    assert raw(images).shape == (4, 20)
    assert torch.equal(folded(images), fold_logits(raw(images), "max"))
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(m.training for m in folded.modules())


def test_one_metadata_key_with_canonical_json(checkpoint: Path) -> None:
    data = checkpoint.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert list(header["__metadata__"]) == ["ducat"]
    text = header["__metadata__"]["ducat"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_no_path_of_this_machine_in_it(checkpoint: Path) -> None:
    assert str(checkpoint.parent).encode() not in checkpoint.read_bytes()
    assert str(Path.home()).encode() not in checkpoint.read_bytes()


def test_two_processes_write_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ducat_serve.checkpoint import *;"
        "s, t = read_checkpoint(Path(sys.argv[1])); write_checkpoint(Path(sys.argv[2]), t, s)"
    )
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, checkpoint, tmp_path / name], check=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == checkpoint.read_bytes()


@pytest.mark.integration
def test_evaluation_waits_neither_for_torchvision_nor_for_the_compiler(checkpoint: Path) -> None:
    """Both take as long to import as torch itself, and no evaluation of a network of ours needs them."""
    code = (
        "import sys; import ducat_serve.library.file_evaluation, training.evaluation.corruptions;"
        "from ducat_serve.deployed import load; load(sys.argv[1]);"
        "sys.exit(str({'torchvision', 'torch._dynamo', 'matplotlib'} & set(sys.modules) or '') or 0)"
    )
    subprocess.run([sys.executable, "-c", code, checkpoint], check=True)


def test_every_flipped_byte_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    """Header, spec and weights: a flip anywhere is an error, never other predictions."""
    data = checkpoint.read_bytes()
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    generator = np.random.default_rng(0)
    positions = [
        *range(0, 8),
        *generator.integers(8, header_end, 150),
        *generator.integers(header_end, len(data), 20),
    ]
    damaged = tmp_path / "model.safetensors"
    for position in positions:
        flipped = bytearray(data)
        flipped[position] ^= 1
        damaged.write_bytes(flipped)
        try:
            spec, tensors = read_checkpoint(damaged)
        except DucatError:
            continue
        # JSON may write the same thing in another way (a blank in the padding, say).
        original_spec, original = read_checkpoint(checkpoint)
        assert spec == original_spec, position
        assert all(np.array_equal(tensors[name], original[name]) for name in original), position


@pytest.mark.parametrize("keep", [0, 7, 100, 5000, -1])
def test_truncated(checkpoint: Path, tmp_path: Path, keep: int) -> None:
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(DataError, match="truncated"):
        read_checkpoint(damaged)


def test_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "exploded"),))  # type: ignore[return-value]

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="not a safetensors file"):
        load(tmp_path / "model.safetensors")
    assert not (tmp_path / "exploded").exists()


def rewrite(checkpoint: Path, target: Path, **changes: object) -> None:
    """Write a checkpoint whose metadata was edited and, like a careful forger, digested again."""
    spec, tensors = read_checkpoint(checkpoint)
    body = spec.model_dump(mode="json")
    body.update(changes)
    forged = ModelSpec.model_construct(**body)
    write_checkpoint(target, tensors, forged)


def test_wrong_schema(checkpoint: Path, tmp_path: Path) -> None:
    rewrite(checkpoint, tmp_path / "m.safetensors", schema_version=99)
    with pytest.raises(VerificationError, match="schema 99"):
        read_spec(tmp_path / "m.safetensors")


def test_metadata_edited_by_hand(checkpoint: Path, tmp_path: Path) -> None:
    data = checkpoint.read_bytes()
    assert data.count(b"resnet-small") == 2  # in the spec and in its recipe
    (tmp_path / "m.safetensors").write_bytes(data.replace(b"resnet-small", b"resnet-smalI"))
    with pytest.raises(VerificationError, match="edited by hand"):
        read_spec(tmp_path / "m.safetensors")


def test_tensor_of_another_shape_is_named(checkpoint: Path) -> None:
    spec, tensors = read_checkpoint(checkpoint)
    tensors["fc.weight"] = tensors["fc.weight"][:10]
    with pytest.raises(VerificationError, match=r"fc\.weight.*\(10, 128\), expected \(20, 128\)"):
        load_weights(build_classifier(spec), tensors, "m")


def test_missing_tensor_is_named(checkpoint: Path) -> None:
    spec, tensors = read_checkpoint(checkpoint)
    del tensors["conv1.weight"]
    with pytest.raises(VerificationError, match=r"conv1\.weight.*missing"):
        load_weights(build_classifier(spec), tensors, "m")


def test_foreign_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(DataError, match="not written by ducat"):
        load(tmp_path / "m.safetensors")


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path / "none.safetensors")
    assert caught.value.exit_code == 4
    assert "ducat train" in str(caught.value)


def test_spec_of_other_weights_is_not_written(checkpoint: Path, tmp_path: Path) -> None:
    spec, tensors = read_checkpoint(checkpoint)
    tensors["fc.bias"] = tensors["fc.bias"] + 1
    with pytest.raises(VerificationError, match="other weights"):
        write_checkpoint(tmp_path / "m.safetensors", tensors, spec)
    assert list(tmp_path.iterdir()) == []


def test_digest_depends_on_names_shapes_types_and_values() -> None:
    base = {"a": np.zeros((2, 3), np.float32)}
    others: list[dict[str, NDArray[Any]]] = [
        {"b": base["a"]},
        {"a": base["a"].reshape(3, 2)},
        {"a": base["a"].astype(np.float64)},
        {"a": base["a"] + 1},
    ]
    digests = {weights_digest(tensors) for tensors in (base, *others)}
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("images", "next_step"),
    [
        (torch.rand(2, 1, 8, 8), "model(images.expand(-1, 3, -1, -1)), for images in shades of grey"),
        (torch.rand(3, 8, 8), "model(image[None]), for a batch of one image"),
        (torch.rand(2, 8, 8, 3), "model(images.permute(0, 3, 1, 2)), for images with their channels last"),
        (torch.rand(2, 4, 8, 8), "give a batch of images with 3 channels"),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            "model(images.float() / 255), for pixels from 0 to 255",
        ),
    ],
    ids=["one channel", "one image", "channels last", "four channels", "bytes"],
)
def test_what_is_no_batch_of_images_is_not_broadcast_to_one(images: torch.Tensor, next_step: str) -> None:
    with pytest.raises(UsageError) as refused:
        load("digits-small")(images)
    kind = str(images.dtype).removeprefix("torch.")
    assert refused.value.cause == (
        f"The model takes float images [N, 3, H, W] in [0, 1], not {kind} {list(images.shape)}."
    )
    assert refused.value.next_step == next_step


def test_images_may_be_of_any_float_and_mapped_over() -> None:
    model, images = load("digits-small"), torch.rand(2, 3, 8, 8)
    expected = model(images)
    assert torch.allclose(torch.func.vmap(model)(images[None])[0], expected, atol=1e-4)
    assert torch.allclose(torch.func.vmap(lambda image: model(image[None])[0])(images), expected, atol=1e-4)
    assert torch.allclose(load("digits-small").double()(images.double()).float(), expected, atol=1e-4)
    assert model.bfloat16()(images.bfloat16()).shape == (2, 10)
