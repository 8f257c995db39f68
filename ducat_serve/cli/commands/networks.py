"""`ducat networks`."""

from __future__ import annotations

import click

from ducat_serve.cli.options import common
from ducat_serve.networks import NETWORKS
from ducat_serve.output import Output


@click.command("networks")
@common
def command(json: bool) -> None:
    """List the networks that `ducat train --network` takes.

    \b
    Example:
      ducat networks
    """
    output = Output(json)
    output.table(
        "",
        ("name", "parameters", "what it is"),
        ((info.name, f"{info.parameters:,}", info.summary) for info in NETWORKS.values()),
    )
    output.result(
        {
            "networks": [
                {"name": i.name, "parameters": i.parameters, "summary": i.summary} for i in NETWORKS.values()
            ]
        }
    )
