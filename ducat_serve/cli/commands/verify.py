"""`ducat verify`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from ducat_serve.cli.options import common
from ducat_serve.output import Output


@click.command("verify")
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--public-key",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="PEM, of whoever may sign.",
)
@click.option(
    "--signature", type=click.Path(path_type=Path, dir_okay=False), help="[default: MODEL.sig, beside MODEL]"
)
@common
def command(model: Path, public_key: Path, signature: Path | None, json: bool) -> None:
    """Check that MODEL is, byte for byte, what the owner of a key signed; exits 3 where it is not.

    \b
    Example:
      ducat verify model.onnx --public-key public.pem
    """
    from ducat_serve.regular_file import read_regular_file
    from ducat_serve.signature import require_signature, signature_path

    output = Output(json)
    needed = "name the model itself; a signature alone says nothing without the file that was signed"
    data = read_regular_file(model, str(model), needed)
    require_signature(data, model, public_key, signature)
    output.text(f"{model} is what the owner of {public_key} signed.")
    output.result(
        {
            "model": str(model),
            "sha256": hashlib.sha256(data).hexdigest(),
            "signature": str(signature or signature_path(model)),
            "public_key": str(public_key),
        }
    )
