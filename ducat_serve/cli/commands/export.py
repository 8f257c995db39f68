"""`ducat export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ducat_serve.cli.network_options import import_from_option, own_network_option
from ducat_serve.cli.options import ModelPath, common, data_dir_option
from ducat_serve.errors import command_line
from ducat_serve.output import Output
from ducat_serve.report import NOT_MEASURED

if TYPE_CHECKING:
    from pydantic import JsonValue

    from ducat_serve.quantisation import Quantisation
    from ducat_serve.report import ExportPrecision
    from export.agreement import Agreement
    from export.parity import ParityReport


@click.command("export")
@click.argument("model", type=ModelPath("safetensors"))
@click.option("--onnx", is_flag=True, default=True, help="Export to ONNX (the only format so far).")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="Of the network up to its head. float16 and int8 do not inherit the robustness report: measure it again. "
    "int8 is calibrated on train images.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write.  [default: beside model.safetensors model.onnx or model-PRECISION.onnx, and so for other "
    "names; of a bundled one NAME.onnx here]",
)
@click.option(
    "--examples",
    is_flag=True,
    help="Put the attacked images that `ducat evaluate` kept into the file, for the page. Whoever may ask sees them.",
)
@click.option(
    "--dataset", help="Where the images for the parity check and for int8 are.  [default: as trained]"
)
@own_network_option
@import_from_option
@data_dir_option
@common
def command(
    model: Path,
    precision: ExportPrecision,
    onnx: bool,  # noqa: ARG001 (spelt out in commands, so that another format can be added)
    out: Path | None,
    examples: bool,
    dataset: str | None,
    data_dir: Path | None,
    json: bool,
) -> None:
    """Export MODEL (a model.safetensors, its run folder, or a bundled model) to ONNX with C outputs.

    The fold from 2C to C logits is inside the graph. The file is compared with torch before it is kept;
    where they differ the command exits with code 3 and leaves no file. A model card (.md) goes beside it.

    int8 makes another function, which is measured by itself: `ducat evaluate model-int8.onnx`.

    \b
    Example:
      ducat export runs/digits/model.safetensors --onnx
      ducat export runs/digits --precision int8
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
    output.text(_compared(parity))
    if spec.quantisation is not None:
        output.text(_quantised(spec.quantisation))
    # In another precision it is another function than what was measured.
    is_to_measure = precision != "float32" and spec.robustness is None
    output.next(command_line("ducat", "evaluate" if is_to_measure else "serve", target))
    output.result(
        {
            "model": str(target),
            "model_card": str(card),
            "bytes": target.stat().st_size,
            "classes": spec.num_classes,
            "precision": precision,
            "quantisation": None if spec.quantisation is None else _record(spec.quantisation),
            "parity": asdict(parity),
        }
    )


def _compared(parity: ParityReport | Agreement) -> str:
    from export.parity import ParityReport

    if isinstance(parity, ParityReport):
        return (
            f"Parity with torch on {parity.images} images ({parity.real_images} real): "
            f"logits within {parity.max_logit_difference:.1e}, labels equal{_undecided(parity)}."
        )
    return (
        f"The same class as the checkpoint on {parity.same_class:.1%} of {parity.images} real images; logits differ by "
        f"{parity.logit_difference:.2g} on average."
    )


def _quantised(quantisation: Quantisation) -> str:
    return (
        f"Calibrated on {quantisation.calibration_images} train images, {quantisation.attacked_images} of them "
        "attacked; weights of 7 bits, right on CPUs with an int8 dot product (VNNI) and without."
    )


def _record(quantisation: Quantisation) -> dict[str, JsonValue]:
    """Without what was measured on the checkpoint."""
    document: dict[str, JsonValue] = quantisation.model_dump(mode="json", exclude={"float32_robustness"})
    return document


def _undecided(parity: ParityReport) -> str:
    """Said of two-tower models too, whose switch is one more decision that rounding may turn."""
    return f" except on {parity.undecided} too close to a decision to compare" if parity.undecided else ""
