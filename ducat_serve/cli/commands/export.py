"""`ducat export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ducat_serve.cli.network_options import import_from_option, own_network_option
from ducat_serve.cli.options import ModelPath, common, data_options
from ducat_serve.errors import command_line
from ducat_serve.output import Output
from ducat_serve.report import NOT_MEASURED

if TYPE_CHECKING:
    from ducat_serve.report import ExportPrecision
    from export.parity import ParityReport


@click.command("export")
@click.argument("model", type=ModelPath("safetensors"))
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
    help="File to write.  [default: model.onnx or model-float16.onnx beside MODEL; of a bundled one NAME.onnx here]",
)
@click.option(
    "--examples",
    is_flag=True,
    help="Put the attacked images that `ducat evaluate` kept into the file, for the page. Whoever may ask sees them.",
)
@click.option("--dataset", help="Where the real images of the parity check are.  [default: as trained]")
@own_network_option
@import_from_option
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
    """Export MODEL (a model.safetensors, its run folder, or a bundled model) to ONNX with C outputs.

    The fold from 2C to C logits is inside the graph. The file is compared with torch before it is kept;
    where they differ the command exits with code 3 and leaves no file. A model card (.md) goes beside it.

    \b
    Example:
      ducat export runs/digits/model.safetensors --onnx
    """
    from ducat_serve.errors import missing_extra

    try:
        from ducat_serve.library.exporting import export
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from error

    output = Output(json)
    exported = export(
        model,
        out=out,
        precision=precision,
        examples=examples,
        dataset=dataset,
        data_dir=data_dir,
        output=output,
    )
    target, card, spec, parity = exported.model, exported.card, exported.spec, exported.parity
    output.text(
        f"{target}: {target.stat().st_size:,} bytes, {spec.num_classes} classes, fold {spec.fold}, {precision}."
    )
    output.text(f"{card}: the model card" + (f" ({NOT_MEASURED})." if spec.robustness is None else "."))
    output.text(
        f"Parity with torch on {parity.images} images ({parity.real_images} real): "
        f"logits within {parity.max_logit_difference:.1e}, labels equal{_undecided(parity)}."
    )
    output.next(command_line("ducat", "serve", target))
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
                "undecided": parity.undecided,
                "max_logit_difference": parity.max_logit_difference,
                "max_mass_difference": parity.max_mass_difference,
            },
        }
    )


def _undecided(parity: ParityReport) -> str:
    """Said of two-tower models too, whose switch is one more decision that rounding may turn."""
    return f" except on {parity.undecided} too close to a decision to compare" if parity.undecided else ""
