"""`ducat sign`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from ducat_serve.cli.options import common
from ducat_serve.errors import command_line
from ducat_serve.output import Output


@click.command("sign")
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--private-key",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="PEM, on the curve P-256, P-384 or P-521; not encrypted.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the signature goes.  [default: MODEL.sig, where it is looked for]",
)
@common
def command(model: Path, private_key: Path, out: Path | None, json: bool) -> None:
    """Sign MODEL, a .onnx or .safetensors file, with a private key; nothing is sent anywhere.

    The signature is a Sigstore bundle, which `ducat verify`, `ducat serve --require-signature` and the command line of
    model-signing check. A key pair is made by OpenSSL:

    \b
    Example:
      openssl ecparam -name prime256v1 -genkey -noout -out key.pem
      openssl ec -in key.pem -pubout -out public.pem
      ducat sign model.onnx --private-key key.pem
      ducat serve model.onnx --require-signature public.pem
    """
    from ducat_serve.model_file import read_verified
    from ducat_serve.signature import sign, signature_path

    output = Output(json)
    data = read_verified(model)  # nobody should vouch for what does not load
    signature = sign(data, model, private_key, out)
    output.text(f"{signature}")
    where = [] if signature == signature_path(model) else ["--signature", signature]
    output.next(command_line("ducat", "verify", model, "--public-key", "public.pem", *where))
    sha256 = hashlib.sha256(data).hexdigest()
    output.result({"model": str(model), "sha256": sha256, "signature": str(signature)})
