"""Exporting a checkpoint because it is to be served: in a process of its own, so that the server never holds torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ducat_serve.checkpoint import checkpoint_path, file_sha256, read_spec
from ducat_serve.errors import DucatError, UsageError, VerificationError, command_line
from ducat_serve.networks import is_own
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor
from ducat_serve.spec import ModelSpec


def exported(path: Path, output: Output, public_key: Path | None = None) -> Path:
    """The file or folder to serve for what a person named: a checkpoint's export, and anything else as it is.

    Args:
        public_key: of who signed an export that is there already; None asks for no signature.

    Raises:
        VerificationError: the export beside the checkpoint is of another model, and is not replaced, or is not signed.
        UsageError: its network is code of the user's own. DucatError: the export failed; why was printed.
    """
    checkpoint = _checkpoint(path)
    if checkpoint is None:
        return path
    target = checkpoint.with_suffix(".onnx")
    if target.exists():
        _require_same_model(target, checkpoint, output, public_key)
    else:
        _export(checkpoint, target, output)
    return target


def _require_same_model(target: Path, checkpoint: Path, output: Output, public_key: Path | None) -> None:
    """Raise VerificationError where an export is not of this checkpoint; say so where only its report is older."""
    found = Predictor(target, device="cpu", threads=1, public_key=public_key)
    precision = [] if found.spec.precision == "float32" else ["--precision", found.spec.precision]
    again = command_line("ducat", *_to_export(checkpoint, target), *precision)
    if found.source_sha256 == file_sha256(checkpoint):
        output.say(f"Serving {target}, which was exported from {checkpoint}.")
    elif _function(found.spec) == _function(read_spec(checkpoint)):
        output.warn(
            f"serving {target}, which has the weights of {checkpoint} but was exported before its report changed. "
            "The next command takes the report over."
        )
        output.next(again)
    else:
        raise VerificationError(
            f"{target} was exported from another model than {checkpoint} now holds.",
            f"{command_line('ducat', 'serve', target)} serves it all the same; {again} replaces it",
        )


def _function(spec: ModelSpec) -> str:
    """What is computed, whatever was measured on it, and in whichever precision."""
    return spec.model_copy(update={"precision": "float32"}).function_digest()


def _export(checkpoint: Path, target: Path, output: Output) -> None:
    _require_no_code(checkpoint, target)
    output.say(f"{checkpoint} is a checkpoint: exporting it first.")
    words = _to_export(checkpoint, target)
    # Quiet, since what export names as the next step is what is being done.
    options = ["--quiet", *(["--json"] if output.notes.as_events else [])]
    command = [sys.executable, "-P", "-m", "ducat_serve", *words, *options]
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        error = DucatError(
            f"{checkpoint} could not be exported, so it cannot be served.", command_line("ducat", *words)
        )
        error.exit_code = code if code > 0 else 1
        raise error


def _require_no_code(checkpoint: Path, target: Path) -> None:
    """Raise UsageError where the network is code of the user's own: nobody names that to a server."""
    spec = read_spec(checkpoint)
    own = [part.network for part in spec.towers or (spec,) if is_own(part.network)]
    if own:
        named = [word for network in dict.fromkeys(own) for word in ("--network", network)]
        raise UsageError(
            f"The network of {checkpoint} is {own[0]}, somebody's own code, which a server does not import.",
            f"{command_line('ducat', *_to_export(checkpoint, target), *named)}, with --import-from DIR where "
            f"it lies in a folder; then {command_line('ducat', 'serve', target)}",
        )


def _to_export(checkpoint: Path, target: Path) -> list[str]:
    """Without ``--out`` another export, of the best weights maybe, would be replaced."""
    return ["export", str(checkpoint), "--out", str(target)]


def _checkpoint(path: Path) -> Path | None:
    """The checkpoint that is meant, where one is; without one, a folder or file is what is served."""
    file = checkpoint_path(path)
    return file if file.suffix == ".safetensors" and file.is_file() else None
