"""`ducat_serve.evaluate`: of a file of ours, or of any torch module on images that are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor, nn

from ducat_serve.errors import UsageError
from ducat_serve.library.arguments import Attacks
from ducat_serve.library.file_evaluation import evaluate_file
from ducat_serve.library.module_evaluation import evaluate_model
from ducat_serve.output import Output
from ducat_serve.predictor import Device
from ducat_serve.report import RobustnessReport
from ducat_serve.spec import Fold
from ducat_serve.threat_model import Norm, ThreatModel

# The two forms are written out, since type checkers and readers of the documentation see no others; a test compares
# them with the functions that do the work.


@overload
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    suite: str = "standard",
    attacks: Attacks = None,
    fold: Fold = "none",
    class_names: Sequence[str] | None = None,
    lattice: Literal["8bit"] | None = None,
    dataset: str = "images",
    batch_size: int = 256,
    seed: int = 0,
    save_adversarial: str | Path | None = None,
    per_image: str | Path | None = None,
    output: Output | None = None,
) -> RobustnessReport: ...


@overload
def evaluate(
    model: str | Path,
    *,
    suite: str = "quick",
    attacks: Attacks = None,
    split: Literal["val", "test"] = "test",
    norm: Norm | None = None,
    eps: float | str | Sequence[float | str] | None = None,
    lattice: Literal["8bit"] | None = None,
    max_examples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    checkpoint: str | Path | None = None,
    save_adversarial: str | Path | None = None,
    per_image: str | Path | None = None,
    device: Device = "auto",
    store: bool = True,
    replace: bool = False,
    resume: bool = False,
    output: Output | None = None,
) -> RobustnessReport: ...


def evaluate(model: str | Path | nn.Module, *given: Any, **options: Any) -> RobustnessReport:
    """Measure clean and robust accuracy of the deployed function, as `ducat evaluate` does.

    A torch module is measured by `evaluate_model`, which has the same arguments as the first form.

    Args:
        model: a `model.safetensors`, its run folder, a `model.onnx`, or as text the name of a bundled model, of which a
            copy in the current folder is measured.
        suite: "quick", "standard" or "full"; of a file "quick" unless given, of a module "standard". attacks: a name or
            several, instead of a suite, or functions of one's own: of (model, images, labels, threat_model) to images
            in the ball.
        split: which images. norm, eps: the threat model, in pixels of [0, 1], as trained unless given. Several eps give
            a curve, `report.curve`. lattice: "8bit" lets attacks make only images of 8 bits.
        max_examples: only so many images of a seeded shuffle. batch_size: 256 unless given, and fewer of large
            images; halved when memory runs out.
        dataset: another one than it was trained on, or where folder:PATH is now. data_dir, offline: as for `train`.
        checkpoint: of a `.onnx` model, the one it came from; `model.safetensors` beside it unless given.
        save_adversarial: a new folder for the images that break the model. per_image: a CSV file with a row for each.
        store: keep the report in the model file, from which export and server take it, unless the one that is there
            says more; ``replace`` stores it in any case.
        resume: go on after the last attack of an interrupted evaluation.
        output: where to say what happens; None prints on stderr as the command does, `Output(silent=True)` nothing.

    Raises:
        UsageError: an unknown name, a value out of range, or something that cannot be measured. DataError,
            VerificationError: as `load`.
        InterruptedRun: Ctrl-C or SIGTERM; what the finished attacks found is kept for ``resume``.

    Examples:
        >>> report = evaluate("runs/digits", suite="standard")
        >>> report.clean_accuracy, report.worst_case_accuracy, report.worst_case_interval
        (0.95, 0.71, (0.66, 0.76))
    """
    if isinstance(model, nn.Module):
        if not given and "images" not in options:
            raise UsageError(
                "A torch module is measured on images that are given, and none are.",
                "evaluate(model, images, labels, threat_model)",
            )
        _require_fitting(evaluate_model, (model, *given), options)
        return evaluate_model(model, *given, **options)
    if not isinstance(model, str | Path):
        raise UsageError(
            f"model: {type(model).__name__} is neither the path of a file nor a torch.nn.Module.",
            "give a path, or evaluate(module, images, labels, threat_model)",
        )
    _require_fitting(evaluate_file, (model, *given), options)
    return evaluate_file(model, *given, **options)


def _require_fitting(
    function: Callable[..., RobustnessReport], given: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """Raise TypeError as Python does, by the name that was called and not by that of the function behind it."""
    try:
        inspect.signature(function).bind(*given, **options)
    except TypeError as error:
        raise TypeError(f"evaluate(): {error}") from None
