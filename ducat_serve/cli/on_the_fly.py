"""Exporting a checkpoint because it is to be served: in a process of its own, so that the server never holds torch."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from ducat_serve.checkpoint import file_sha256
from ducat_serve.errors import DucatError, VerificationError
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor

CHECKPOINT, EXPORTED = "model.safetensors", "model.onnx"


def exported(path: Path, output: Output, public_key: Path | None = None) -> Path:
    """The file or folder to serve for what a person named: a checkpoint's export, and anything else as it is.

    Args:
        public_key: of who signed an export that is there already; None asks for no signature.

    Raises:
        VerificationError: there is a model.onnx beside the checkpoint that came from another one, which is not
            replaced, or that is not signed.
        DucatError: the export failed; why was printed.
    """
    checkpoint = _checkpoint(path)
    if checkpoint is None:
        return path
    target = checkpoint.with_suffix(".onnx")
    if target.exists():
        found = Predictor(target, device="cpu", threads=1, public_key=public_key)
        if found.source_sha256 != file_sha256(checkpoint):
            raise VerificationError(
                f"{target} was exported from another checkpoint than {checkpoint}.",
                f"ducat serve {shlex.quote(str(target))}, or ducat export {shlex.quote(str(checkpoint))} first",
            )
        output.say(f"Serving {target}, which was exported from {checkpoint}.")
        return target
    output.say(f"{checkpoint} is a checkpoint: exporting it first.")
    # Quiet, since what export names as the next step is what is being done.
    options = ["--quiet", *(["--json"] if output.notes.as_events else [])]
    command = [sys.executable, "-P", "-m", "ducat_serve", "export", str(checkpoint), *options]
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        error = DucatError(
            f"{checkpoint} could not be exported, so it cannot be served.",
            f"ducat export {shlex.quote(str(checkpoint))}",
        )
        error.exit_code = code if code > 0 else 1
        raise error
    return target


def _checkpoint(path: Path) -> Path | None:
    """The checkpoint that is meant, where one is; a folder with something to serve is left alone."""
    if path.suffix == Path(CHECKPOINT).suffix and path.is_file():
        return path
    is_run = (path / CHECKPOINT).is_file() and not (path / EXPORTED).exists()
    return path / CHECKPOINT if is_run else None
