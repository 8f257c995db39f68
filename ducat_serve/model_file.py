"""Read the ModelSpec of a model file of either kind, with all of its digests checked."""

from __future__ import annotations

from pathlib import Path

from ducat_serve.checkpoint import read_checkpoint
from ducat_serve.spec import ModelSpec


def read_verified_spec(path: Path) -> tuple[ModelSpec, str | None]:
    """The spec of a `.safetensors` or `.onnx` file, and for the latter the SHA-256 of its source checkpoint.

    Raises DataError or VerificationError as `read_checkpoint` and `Predictor` do.
    """
    if path.suffix == ".onnx":
        from ducat_serve.predictor import Predictor

        predictor = Predictor(path, device="cpu", threads=1)
        return predictor.spec, predictor.source_sha256
    return read_checkpoint(path)[0], None
