"""`ducat export`."""

from __future__ import annotations

from pathlib import Path

import click

from ducat_serve.cli.options import common
from ducat_serve.output import Output


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--onnx", "to_onnx", is_flag=True, default=True, help="Export to ONNX (the only format so far)."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="File to write.  [default: model.onnx beside MODEL]"
)
@common
def command(model: Path, to_onnx: bool, out: Path | None, as_json: bool) -> None:  # noqa: ARG001
    """Export MODEL (a model.safetensors or its run folder) to ONNX with C outputs.

    The fold from 2C to C logits is inside the graph. The file is compared with torch before it is kept;
    where they differ the command exits with code 3 and leaves no file.

    \b
    Example:
      ducat export runs/digits/model.safetensors --onnx
    """
    from ducat_serve.deployed import checkpoint_path
    from ducat_serve.errors import missing_extra

    try:
        from export.onnx_writer import export_onnx
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from error

    output = Output(as_json)
    checkpoint = checkpoint_path(model)
    target = out or checkpoint.with_name("model.onnx")
    spec, parity = export_onnx(checkpoint, target)
    output.say(
        f"{target}: {target.stat().st_size:,} bytes, {spec.num_classes} classes, fold {spec.fold}. Parity with torch "
        f"on {parity.images} images: logits within {parity.max_logit_difference:.1e}, labels equal.\n"
        f"Next: ducat serve {target}"
    )
    output.result(
        {
            "model": str(target),
            "bytes": target.stat().st_size,
            "classes": spec.num_classes,
            "parity": {
                "images": parity.images,
                "labels_compared": parity.labels_compared,
                "max_logit_difference": parity.max_logit_difference,
                "max_mass_difference": parity.max_mass_difference,
            },
        }
    )
