"""The export that a folder or a checkpoint stands for: one of the same model.

A checkpoint that is to be served is exported in a process of its own, so that the server never holds torch.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ducat_serve.checkpoint import checkpoint_path, read_spec
from ducat_serve.errors import DucatError, UsageError, command_line
from ducat_serve.model_file import export_again, exported_in, is_whole_export
from ducat_serve.networks import is_own
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor


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


def export_of(path: Path, output: Output) -> Path:
    """The export that a folder stands for, and any other path as it is.

    Raises VerificationError where the folder's checkpoint is another model, and what `Predictor` raises then.
    """
    checkpoint, target = _checkpoint(path), exported_in(path)
    if path.is_dir() and checkpoint is not None and target.exists():
        _require_same_model(target, checkpoint, output, None)
    return target


def _require_same_model(target: Path, checkpoint: Path, output: Output, public_key: Path | None) -> None:
    """Raise VerificationError where an export is not of this checkpoint; say so where only its report is older."""
    found = Predictor(target, device="cpu", threads=1, public_key=public_key)
    if is_whole_export(target, found.spec, found.source_sha256, checkpoint):
        output.say(f"Taking {target}, which was exported from {checkpoint}.")
    else:
        output.warn(
            f"taking {target}, which has the weights of {checkpoint} but was exported before its report changed. "
            "The next command takes the report over."
        )
        output.next(export_again(target, found.spec, checkpoint))


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
