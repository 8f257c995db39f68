"""`ducat datasets`."""

from __future__ import annotations

from pathlib import Path

import click

from ducat_serve.cli.options import common, data_options
from ducat_serve.output import Output


@click.command("datasets")
@data_options
@common
def command(data_dir: Path | None, offline: bool, json: bool) -> None:
    """List the data sets that `ducat train --dataset` takes, and what is there already.

    \b
    Example:
      ducat datasets
      ducat datasets --data-dir ~/data
    """
    from training.data import DATASETS, default_data_dir, find_archive

    output = Output(json)
    folder = data_dir or default_data_dir()
    entries = []
    for info in DATASETS.values():
        found = find_archive(info, folder)
        if info.archive is None:
            state = "embedded"
        elif found is not None:
            state = f"found: {found}"
        else:
            state = "missing" if offline else f"will be downloaded ({info.archive.size / 1e6:.0f} MB)"
        entries.append(
            {"name": info.name, "classes": info.classes, "image_size": info.image_size, "state": state}
        )
    output.table(
        "",
        ("name", "classes", "images", "state"),
        [
            *((e["name"], e["classes"], f"{e['image_size']}x{e['image_size']}", e["state"]) for e in entries),
            ("folder:PATH", "any", "any", "class folders under train/ and val/ or test/"),
        ],
    )
    output.result({"data_dir": str(folder), "datasets": entries})
