"""`ducat bento`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import click

from ducat_serve.cli.on_the_fly import export_of
from ducat_serve.cli.options import ModelPath, common
from ducat_serve.errors import UsageError, command_line, missing_extra
from ducat_serve.output import Output

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


@click.command("bento")
@click.argument("model", type=ModelPath("onnx"))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to make.  [default: BentoML's store]",
)
@click.option("--name", default="ducat", show_default=True, help="Of the Bento; its version is the weights'.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Which ONNX Runtime it requires. One for cuda also runs where there is no GPU.",
)
@click.option(
    "--sbom",
    is_flag=True,
    help="Put a software bill of materials (CycloneDX) in, as src/sbom.cdx.json.",
)
@common
def command(
    model: Path, out: Path | None, name: str, device: Literal["cpu", "cuda"], sbom: bool, json: bool
) -> None:
    """Pack MODEL with the serving code and pinned requirements into a Bento.

    MODEL is a model.onnx, a folder with one, or a bundled model (`ducat models`).

    A signature beside MODEL (`ducat sign`) goes in too. No key and no setting of this machine goes in: the server reads
    DUCAT_SERVE_... where it runs.

    \b
    Example:
      ducat bento model.onnx
      bentoml serve --host 127.0.0.1 ducat:latest
    """
    import importlib.util

    if importlib.util.find_spec("bentoml") is None:
        raise missing_extra("bentoml", "serve")
    from ducat_serve.predictor import Predictor
    from export.bento import build_bento

    if not _NAME.fullmatch(name):
        raise UsageError(
            f"A Bento cannot be called '{name}'.",
            "use lower-case letters and digits, and - _ . between them; at most 63",
        )
    output = Output(json)
    path = export_of(model, output)
    spec = Predictor(path, device="cpu", threads=1).spec  # whole, ours, and it loads
    # BentoML 1.4 finds a Bento in a folder by its absolute path only.
    bento = build_bento(path, spec, name, device, out.resolve() if out else None, with_sbom=sbom)
    for requirement in bento.unpinned:
        output.warn(f"{requirement} is not installed here, so the Bento does not pin its version.")
    output.text(f"{bento.tag}: {bento.path}" + ("" if bento.is_new else " (it was there already)"))
    # By itself BentoML listens on every interface, and without keys everybody may ask.
    output.next(command_line("bentoml", "serve", "--host", "127.0.0.1", bento.path if out else bento.tag))
    output.result(
        {"tag": bento.tag, "path": str(bento.path), "is_new": bento.is_new, "unpinned": list(bento.unpinned)}
    )
