"""`ducat export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ducat_serve.cli.options import common, data_options
from ducat_serve.errors import DataError, DucatError
from ducat_serve.output import Output
from ducat_serve.report import NOT_MEASURED
from ducat_serve.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ducat_serve.attacked_examples import AttackedExamples
    from ducat_serve.report import ExportPrecision

REAL_IMAGES = 64  # for the parity check
REFERENCE_IMAGES = 1000  # for what the model answered at export


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--onnx", is_flag=True, default=True, help="Export to ONNX (the only format so far).")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the network up to its head. float16 drops the robustness report: measure it again.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write.  [default: model.onnx or model-float16.onnx beside MODEL]",
)
@click.option(
    "--examples",
    is_flag=True,
    help="Put the attacked images that `ducat evaluate` kept into the file, for the page. Whoever may ask sees them.",
)
@click.option("--dataset", help="Where the real images of the parity check are.  [default: as trained]")
@data_options
@common
def command(
    model: Path,
    precision: ExportPrecision,
    onnx: bool,  # noqa: ARG001 (spelt out in commands, so that another format can be added)
    out: Path | None,
    examples: bool,
    dataset: str | None,
    data_dir: Path | None,
    offline: bool,  # noqa: ARG001 (export never downloads)
    json: bool,
) -> None:
    """Export MODEL (a model.safetensors or its run folder) to ONNX with C outputs.

    The fold from 2C to C logits is inside the graph. The file is compared with torch before it is kept;
    where they differ the command exits with code 3 and leaves no file. A model card (.md) goes beside it.

    \b
    Example:
      ducat export runs/digits/model.safetensors --onnx
    """
    from ducat_serve.atomic import write_text
    from ducat_serve.checkpoint import checkpoint_path
    from ducat_serve.errors import missing_extra

    try:
        from export.model_card import model_card
        from export.onnx_writer import export_onnx
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from error

    output = Output(json)
    checkpoint = checkpoint_path(model)
    target = out or checkpoint.with_name(
        "model.onnx" if precision == "float32" else f"model-{precision}.onnx"
    )
    real = _real_images(checkpoint, dataset, data_dir, output)
    spec, parity = export_onnx(
        checkpoint,
        target,
        None if real is None else real[:REAL_IMAGES],
        precision,
        reference=real,
        examples=_kept_examples(checkpoint) if examples else None,
    )
    card = target.with_suffix(".md")
    write_text(card, model_card(spec, target.name))
    output.say(
        f"{target}: {target.stat().st_size:,} bytes, {spec.num_classes} classes, fold {spec.fold}, {precision}."
    )
    output.say(f"{card}: the model card" + (f" ({NOT_MEASURED})." if spec.robustness is None else "."))
    output.say(
        f"Parity with torch on {parity.images} images ({parity.real_images} real): "
        f"logits within {parity.max_logit_difference:.1e}, labels equal.\nNext: ducat serve {target}"
    )
    output.result(
        {
            "model": str(target),
            "model_card": str(card),
            "bytes": target.stat().st_size,
            "classes": spec.num_classes,
            "parity": {
                "images": parity.images,
                "real_images": parity.real_images,
                "labels_compared": parity.labels_compared,
                "max_logit_difference": parity.max_logit_difference,
                "max_mass_difference": parity.max_mass_difference,
            },
        }
    )


def _kept_examples(checkpoint: Path) -> AttackedExamples:
    from ducat_serve.attacked_examples import FILE_NAME, MOST_BYTES, AttackedExamples
    from ducat_serve.checkpoint import read_spec

    file = checkpoint.with_name(FILE_NAME)
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"There are no attacked images in {file}.", f"ducat evaluate {shlex.quote(str(checkpoint))}"
        ) from error
    return AttackedExamples.from_json(text, read_spec(checkpoint), str(file))


def _real_images(
    checkpoint: Path, dataset: str | None, data_dir: Path | None, output: Output
) -> NDArray[np.uint8] | None:
    """Some val images of the data set that the model was trained on, if they are on this machine."""
    from ducat_serve.checkpoint import read_spec
    from training.run.dataset import load_training_data

    spec: ModelSpec = read_spec(checkpoint)
    try:
        data = load_training_data(
            checkpoint, spec, dataset=dataset, data_dir=data_dir, offline=True, output=output
        )
    except (ImportError, DucatError) as error:
        reason = getattr(error, "cause", str(error))
        output.warn(
            f"the parity check has no real images, and nothing is kept to see drift by: {reason} "
            "Name them with --data-dir or --dataset."
        )
        return None
    return data.val.images[:REFERENCE_IMAGES]
