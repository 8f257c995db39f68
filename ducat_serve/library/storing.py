"""A report goes back into the file of the model that was measured, beside what others have stored there meanwhile."""

from __future__ import annotations

from pathlib import Path

from ducat_serve.checkpoint import read_checkpoint, write_checkpoint
from ducat_serve.errors import missing_extra
from ducat_serve.report import MergeReport


def require_export() -> None:
    """Raise DucatError where no exported file can be written: before hours of attack, not after."""
    try:
        import export.onnx_writer  # noqa: F401
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from error


def store_in_checkpoint(path: Path, function: str, merged: MergeReport) -> None:
    """Put a report into a checkpoint; whatever else it says by now stays.

    Args:
        function: the `ModelSpec.function_digest` of what was measured.

    Raises:
        DataError, VerificationError: as `read_checkpoint` does, or the file holds another function by now.
    """
    spec, tensors = read_checkpoint(path)
    spec.require_measured(function, path)
    write_checkpoint(path, tensors, spec.model_copy(update={"robustness": merged(spec.robustness)}))


def store_in_export(path: Path, function: str, merged: MergeReport) -> None:
    """The same for an exported file, whose card is written again. Raises as `store_report` does."""
    require_export()
    from export.model_card import update_card
    from export.onnx_writer import store_report

    update_card(store_report(path, function, merged), path)
