"""`model.safetensors`: float32 weights plus the ModelSpec, and nothing else. Needs no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from ducat_serve import atomic
from ducat_serve.errors import DataError, VerificationError
from ducat_serve.regular_file import near_path
from ducat_serve.spec import METADATA_KEY, ModelSpec

# What networks of ours have: weights and statistics, and the counter of BatchNorm. Others are refused before they are
# read, since NumPy does not even know all of them (bfloat16, 8 bits and fewer).
_DTYPES = {"F32", "I64"}

Tensors = Mapping[str, NDArray[Any]]


def checkpoint_path(path: str | Path) -> Path:
    """A run folder stands for the `model.safetensors` inside it."""
    is_folder = os.path.isdir(path)  # noqa: PTH112 (a Path raises for a name that no file system takes)
    return Path(path, "model.safetensors") if is_folder else Path(path)


def weights_digest(tensors: Tensors) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every tensor, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}|{array.dtype.str}|{tensors[name].shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


# The next command for weights of others.
_IMPORT = "ducat import torchvision:NAME --pretrained FILE --dataset NAME (or timm:NAME, or your own code, nets:make)"


def write_checkpoint(path: Path, tensors: Tensors, spec: ModelSpec) -> None:
    """Write a checkpoint atomically; the same tensors and spec give the same bytes.

    Raises:
        VerificationError: ``spec.weights_digest`` is not the digest of ``tensors``.
        DucatError: the file cannot be written; an existing one stays.
    """
    if spec.weights_digest != weights_digest(tensors):
        raise VerificationError(f"{path}: the ModelSpec was made for other weights; nothing was written")
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    # One metadata key: with two or more, safetensors writes them in random order and the hash varies.
    atomic.write_bytes(path, serialise(contiguous, metadata={METADATA_KEY: spec.to_json()}))


def read_spec(path: Path) -> ModelSpec:
    """Read only the ModelSpec. Raises as `read_checkpoint`, but does not check the weights."""
    with _open(path) as file:
        return _spec(file, path)


def read_checkpoint(path: Path) -> tuple[ModelSpec, dict[str, NDArray[Any]]]:
    """Read and verify a checkpoint.

    Raises:
        DataError: missing, truncated, not a safetensors file (a pickle, say: it is never loaded), or not written by
            ducat.
        VerificationError: edited by hand, weights that differ from their digest, or tensors that no network of ours
            has: of another dtype, empty, NaN or infinite.
    """
    with _open(path) as file:
        spec = _spec(file, path)
        tensors = {name: _tensor(file, name, path) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if weights_digest(tensors) != spec.weights_digest:
        raise VerificationError(
            f"{path}: the weights do not match their digest; the file was damaged or changed.",
            "take the file from its source again, or train it again",
        )
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise VerificationError(
                f"{path}: '{name}' holds NaN or infinite numbers; these weights are of no use.",
                "train the model again",
            )
    return spec, tensors


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, as ONNX metadata names its source checkpoint."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path) -> Any:
    path = Path(path)
    if not os.path.isfile(path):  # noqa: PTH113 (as above)
        raise DataError(
            f"There is no checkpoint at {path}.{near_path(path)}",
            "name one, or a bundled model (`ducat models`); to train one: ducat train --dataset digits --ducat off",
        )
    if path.suffix == ".onnx":
        raise DataError(
            f"{path} is an exported model; this needs the checkpoint (.safetensors) that it was exported from.",
            "name the model.safetensors, or its run folder",
        )
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is not a safetensors file, or it is truncated ({error}). Pickles are never loaded.",
            f"take the file from its source again; weights of others: {_IMPORT}",
        ) from error


def _tensor(file: Any, name: str, path: Path) -> NDArray[Any]:
    try:
        dtype = file.get_slice(name).get_dtype()
        array: NDArray[Any] | None = file.get_tensor(name) if dtype in _DTYPES else None
    except Exception as error:  # shapes that NumPy cannot have raise what NumPy raises
        raise DataError(f"{path}: '{name}' cannot be read ({error}).") from error
    if array is None or array.size == 0:
        what = f"of the type {dtype}" if array is None else "empty"
        raise VerificationError(f"{path}: '{name}' is {what}, as no tensor of a network of ours is.")
    return array


def _spec(file: Any, path: Path) -> ModelSpec:
    text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise DataError(
            f"{path} holds weights but no '{METADATA_KEY}' metadata: it was not written by ducat.",
            _IMPORT,
        )
    return ModelSpec.from_json(text, str(path))
