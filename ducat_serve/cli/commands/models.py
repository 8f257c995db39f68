"""`ducat models`."""

from __future__ import annotations

import click

from ducat_serve.cli.options import common
from ducat_serve.errors import command_line
from ducat_serve.output import Output


@click.command("models")
@common
def command(json: bool) -> None:
    """List the trained models that come with the package.

    Their names stand for MODEL in every command but sign and verify, which are for files of your own.

    Accuracies are measured on test images, with 95 % intervals; `ducat inspect NAME` says by which attacks. A
    model whose files were changed is named, and no command takes it. Network, origin and digests are in `ducat models
    --json` and `ducat inspect NAME`.

    \b
    Example:
      ducat models
      ducat predict digits-small photo.png
      ducat serve digits-small
    """
    from ducat_serve.bundled import KINDS, REINSTALL, bundled_models

    output = Output(json)
    models = tuple(bundled_models().values())
    damaged = {model.name: [kind for kind in KINDS if model.damage(kind)] for model in models}
    output.table(
        "",
        ("name", "data set", "weights", "clean, %", "worst case, %", "against"),
        (
            (
                f"{model.name} (changed)" if damaged[model.name] else model.name,
                model.dataset,
                f"{model.parameters / 1e6:.2f} M",
                _percent(model.clean_accuracy, model.clean_interval),
                _percent(model.worst_case_accuracy, model.worst_case_interval),
                model.threat_model,
            )
            for model in models
        ),
    )
    for model in models:
        for kind in damaged[model.name]:
            output.warn(str(model.damage(kind)))
    whole = [model.name for model in models if not damaged[model.name]]
    if len(whole) < len(models):
        output.next(REINSTALL)
    elif whole:
        output.next(command_line("ducat", "serve", whole[0]))
    output.result(
        {
            "models": [
                {
                    **model.model_dump(mode="json"),
                    "files": {kind: str(model.path(kind)) for kind in KINDS},
                    "changed": damaged[model.name],
                }
                for model in models
            ]
        }
    )


def _percent(accuracy: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})"
