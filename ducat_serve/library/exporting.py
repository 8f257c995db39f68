"""`ducat_serve.export`: a checkpoint becomes an ONNX file with its model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from ducat_serve.atomic import require_writable, write_text
from ducat_serve.attacked_examples import MOST_BYTES, AttackedExamples, examples_file
from ducat_serve.bundled import bundled_name, model_path
from ducat_serve.checkpoint import checkpoint_path, read_spec
from ducat_serve.errors import DataError, DucatError, UsageError, command_line, install_extra, missing_extra
from ducat_serve.library.arguments import require_one_of
from ducat_serve.output import Output
from ducat_serve.report import ExportPrecision
from ducat_serve.spec import ModelSpec
from export.agreement import Agreement
from export.model_card import card_path, model_card
from export.onnx_writer import export_int8, export_onnx
from export.parity import ParityReport
from training.randomness import subset

if TYPE_CHECKING:
    from training.data import Dataset

REAL_IMAGES = 64  # for the parity check
REFERENCE_IMAGES = 1000  # for what the model answered at export
_SEED = 0  # the same checkpoint and data give the same file


@dataclass(frozen=True)
class Exported:
    """What was written: the ONNX file, its model card, what the model is, and how it was compared with torch.

    An int8 file is another function than its checkpoint: of it, ``parity`` says how far the two agree.
    """

    model: Path
    card: Path
    spec: ModelSpec
    parity: ParityReport | Agreement


def export(
    model: str | Path,
    *,
    out: str | Path | None = None,
    precision: ExportPrecision = "float32",
    examples: bool = False,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    output: Output | None = None,
) -> Exported:
    """Export a checkpoint to ONNX with C outputs, as `ducat export` does; the fold is inside the graph.

    Args:
        model: a `model.safetensors`, its run folder, or as text the name of a bundled model.
        out: the file to write; beside `model.safetensors` it is `model.onnx`, or `model-float16.onnx` and its like,
            unless given, and so for other names; in the current folder for a bundled model.
        precision: of the network up to its head. Other ones than float32 do not inherit the robustness report: measure
            it again. An export of the same function keeps what was measured on the file in its place. int8 needs train
            images of the data set, of which half are attacked, to calibrate on.
        examples: put the attacked images that an evaluation kept into the file; whoever may ask the server sees them.
        dataset, data_dir: where the real images of the comparison with torch are; as trained unless given.
        output: where to warn; None prints on stderr, `Output(silent=True)` nothing.

    Raises:
        UsageError: an unknown ``precision``; ``out`` does not end in `.onnx`, or is another model with a report that
            is nowhere else, or a text that is no card has the card's place.
        VerificationError: ONNX Runtime and torch disagree; no file is left. DataError: as `load`, and for int8 where
            the data set is not on this machine.

    Examples:
        >>> exported = export("runs/digits")
        >>> exported.model, exported.parity.max_logit_difference
        (PosixPath('runs/digits/model.onnx'), 3.8e-06)
    """
    require_one_of("precision", precision, get_args(ExportPrecision))
    checkpoint = checkpoint_path(model_path(model, "safetensors"))
    target = _default_target(checkpoint, precision) if out is None else Path(out)
    if target.suffix != ".onnx":
        raise UsageError(
            f"{target} does not end in .onnx, by which every command knows an exported model.",
            "--out model.onnx",
        )
    card = card_path(target)
    for file in (target, card):  # before minutes of calibration, not after
        require_writable(file)
    folder = None if data_dir is None else Path(data_dir)
    output = output or Output()
    kept = _kept_examples(checkpoint) if examples else None
    parity: ParityReport | Agreement
    if precision == "int8":
        spec, parity = _export_int8(checkpoint, target, dataset, folder, kept, output)
    else:
        real = _real_images(checkpoint, dataset, folder, output)
        parity_images = None if real is None else real[_places(len(real), REAL_IMAGES)]
        spec, parity = export_onnx(
            checkpoint, target, parity_images, precision, reference=real, examples=kept
        )
    write_text(card, model_card(spec, target.name))
    return Exported(target, card, spec, parity)


def _export_int8(
    checkpoint: Path,
    target: Path,
    dataset: str | None,
    data_dir: Path | None,
    examples: AttackedExamples | None,
    output: Output,
) -> tuple[ModelSpec, Agreement]:
    """Raises DataError where the data set is not on this machine: without its images nothing can be calibrated."""
    try:
        from ducat_serve.deployed import load
        from ducat_serve.library.calibrating import calibration_images
    except ImportError as error:
        raise missing_extra(error.name or "torchvision", "train") from error

    spec = read_spec(checkpoint)
    try:
        data = _training_data(checkpoint, spec, dataset, data_dir, output)
    except DataError as error:
        raise DataError(
            f"int8 is calibrated on train images of the model's data set. {error.cause}",
            "name them with --data-dir or --dataset, or export with --precision float32",
        ) from error
    calibration = calibration_images(load(checkpoint), data.train, output)
    reference = data.val.at(_places(len(data.val), REFERENCE_IMAGES))
    return export_int8(checkpoint, target, reference, calibration, examples)


def _default_target(checkpoint: Path, precision: ExportPrecision) -> Path:
    bundled = bundled_name(checkpoint)  # nothing is written into the package
    name = bundled or checkpoint.stem
    suffix = "" if precision == "float32" else f"-{precision}"
    return (Path() if bundled else checkpoint.parent) / f"{name}{suffix}.onnx"


def _kept_examples(checkpoint: Path) -> AttackedExamples:
    # Of a bundled model a copy in the current folder is measured.
    file = examples_file(Path(checkpoint.name) if bundled_name(checkpoint) else checkpoint)
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"There are no attacked images in {file}.",
            command_line("ducat", "evaluate", bundled_name(checkpoint) or checkpoint),
        ) from error
    return AttackedExamples.from_json(text, read_spec(checkpoint), str(file))


def _real_images(
    checkpoint: Path, dataset: str | None, data_dir: Path | None, output: Output
) -> NDArray[np.uint8] | None:
    """Some val images of the data set that the model was trained on, if they are on this machine."""
    spec = read_spec(checkpoint)
    try:
        data = _training_data(checkpoint, spec, dataset, data_dir, output)
    except (ImportError, DucatError) as error:
        if isinstance(error, DucatError):
            reason = f"{error.cause} Name them with --data-dir or --dataset."
        else:
            reason = f"reading them needs {error.name}, which is not installed: {install_extra('train')}."
        output.warn(f"the parity check has no real images, and nothing is kept to see drift by: {reason}")
        return None
    return data.val.at(_places(len(data.val), REFERENCE_IMAGES))


def _places(total: int, count: int) -> NDArray[np.int64]:
    """Where ``count`` images are to be taken, all over the split: the first ones may be of two classes."""
    places: NDArray[np.int64] = subset(total, count, _SEED).numpy()
    return places


def _training_data(
    checkpoint: Path, spec: ModelSpec, dataset: str | None, data_dir: Path | None, output: Output
) -> Dataset:
    """The data set of a checkpoint; export never downloads one. Raises UsageError for one of other classes."""
    from training.run.dataset import load_training_data

    data = load_training_data(
        checkpoint, spec, dataset=dataset, data_dir=data_dir, offline=True, output=output
    )
    if data.class_names != spec.labels:
        raise UsageError(
            f"{data.title} has other classes than the model.",
            "name the data set that it was trained on with --dataset",
        )
    return data
