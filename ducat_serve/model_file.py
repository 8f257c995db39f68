"""Read the ModelSpec of a model file of either kind, with all of its digests checked."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ducat_serve.checkpoint import checkpoint_path, read_checkpoint
from ducat_serve.errors import DucatError
from ducat_serve.regular_file import read_regular_file
from ducat_serve.spec import ModelSpec


def exported_in(path: Path) -> Path:
    """A folder stands for the `model.onnx` inside it."""
    return path / "model.onnx" if path.is_dir() else path


def model_in(path: Path) -> Path:
    """A folder stands for the checkpoint inside it, and where there is none for the export."""
    checkpoint = checkpoint_path(path)
    return checkpoint if checkpoint.exists() or not exported_in(path).exists() else exported_in(path)


def read_verified_spec(path: Path) -> tuple[ModelSpec, str | None]:
    """The spec of a `.safetensors` or `.onnx` file, and for the latter the SHA-256 of its source checkpoint.

    Raises DataError or VerificationError as `read_checkpoint` and `Predictor` do.
    """
    if path.suffix == ".onnx":
        from ducat_serve.predictor import Predictor

        predictor = Predictor(path, device="cpu", threads=1)
        return predictor.spec, predictor.source_sha256
    return read_checkpoint(path)[0], None


def read_verified(path: Path) -> bytes:
    """The bytes of a model file, read once, so that nobody can change the file between the check and its use.

    Raises DataError or VerificationError as `read_verified_spec` does.
    """
    data = read_regular_file(path, str(path), "name a .onnx or .safetensors file")
    with tempfile.TemporaryDirectory(prefix="ducat-model-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(data)
        try:
            read_verified_spec(copy)
        except DucatError:
            read_verified_spec(path)  # says the same, but names the file
            raise
    return data
