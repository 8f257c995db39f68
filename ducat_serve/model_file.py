"""Which model file is meant by a path, and its ModelSpec, with all of its digests checked."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from ducat_serve.checkpoint import checkpoint_path, file_sha256, read_checkpoint, read_spec
from ducat_serve.errors import DucatError, VerificationError, command_line
from ducat_serve.regular_file import read_regular_file
from ducat_serve.spec import ModelSpec


def exported_in(path: Path) -> Path:
    """A folder stands for the `model.onnx` inside it."""
    return path / "model.onnx" if os.path.isdir(path) else path  # noqa: PTH112 (as in `checkpoint_path`)


def model_in(path: Path) -> Path:
    """A folder stands for the checkpoint inside it, and where there is none for the export."""
    checkpoint = checkpoint_path(path)
    return checkpoint if checkpoint.exists() or not exported_in(path).exists() else exported_in(path)


def is_whole_export(export: Path, spec: ModelSpec, source_sha256: str, checkpoint: Path) -> bool:
    """Whether an export holds all that its checkpoint holds now; False where it has an older report.

    Args:
        spec: of the export. source_sha256: of the checkpoint that it was made from.

    Raises VerificationError where the checkpoint is another model by now.
    """
    if source_sha256 == file_sha256(checkpoint):
        return True
    if _function(spec) == _function(read_spec(checkpoint)):
        return False
    raise VerificationError(
        f"{export} was exported from another model than {checkpoint} now holds.",
        f"{export_again(export, spec, checkpoint)} replaces it; to take it all the same, name the file itself: "
        f"{command_line(export)}",
    )


def _function(spec: ModelSpec) -> str:
    """What is computed, whatever was measured on it, and in whichever precision."""
    return spec.model_copy(update={"precision": "float32"}).function_digest()


def export_again(export: Path, spec: ModelSpec, checkpoint: Path) -> str:
    """The command that makes an export anew. Without ``--out`` another one, of the best weights maybe, is replaced."""
    precision = [] if spec.precision == "float32" else ["--precision", spec.precision]
    return command_line("ducat", "export", checkpoint, "--out", export, *precision)


class VerifiedSpec(NamedTuple):
    """What a model file says it is; the digests are those of an exported file, None for a checkpoint."""

    spec: ModelSpec
    source_sha256: str | None  # of the checkpoint that it was made from
    function_digest: str | None


def read_verified_spec(path: Path) -> VerifiedSpec:
    """What a `.safetensors` or `.onnx` file says it is, with all of its digests checked.

    Raises DataError or VerificationError as `read_checkpoint` and `Predictor` do.
    """
    if path.suffix == ".onnx":
        from ducat_serve.predictor import Predictor

        predictor = Predictor(path, device="cpu", threads=1)
        return VerifiedSpec(predictor.spec, predictor.source_sha256, predictor.function_digest)
    return VerifiedSpec(read_checkpoint(path)[0], None, None)


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
