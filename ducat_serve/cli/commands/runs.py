"""`ducat runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ducat_serve.cli.options import common
from ducat_serve.errors import DataError, DucatError, command_line
from ducat_serve.output import Output
from ducat_serve.report import NOT_MEASURED


@click.command("runs")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), required=False)
@common
def command(folder: Path | None, json: bool) -> None:
    """List the training runs in FOLDER (runs/ by default), or FOLDER itself: state, epoch, accuracies.

    \b
    Example:
      ducat runs
      ducat runs ~/experiments --json
    """
    output = Output(json)
    if folder is not None and not folder.is_dir():
        raise DataError(
            f"There is no folder {folder}.", "ducat runs FOLDER, with the folder that runs are in"
        )
    folder = folder or Path("runs")
    is_run = (folder / "config.json").is_file()
    configs = [folder.resolve() / "config.json"] if is_run else sorted(folder.glob("*/config.json"))
    runs = [_describe(path.parent) for path in configs]
    if not runs:
        output.warn(f"there is no run in {folder}.")
        train = ("ducat", "train", "--dataset", "digits", "--ducat", "off")
        output.next(command_line(*train, "--out", folder / "NAME"))
    else:
        output.table(
            "",
            ("run", "state", "epoch", "method", "val clean", "val PGD", "worst"),
            [
                (
                    run["name"],
                    f"{run['state']} ({run['warning']})" if run["warning"] else run["state"],
                    f"{run['epoch']}/{run['epochs']}",
                    run["method"],
                    _percent(run["best_val_clean_accuracy"]),
                    _percent(run["best_val_pgd_accuracy"]),
                    _percent(run["worst_case_accuracy"]),
                )
                for run in runs
            ],
        )
    output.result({"runs": runs})


def _describe(path: Path) -> dict[str, Any]:
    from ducat_serve.checkpoint import read_spec
    from training.run.folder import RunFolder
    from training.run.metrics import COLLAPSED, kept_row, sign_of

    folder = RunFolder(path)
    try:
        config = folder.read_recorded()
        spec = read_spec(folder.model) if folder.model.is_file() else None
        rows = folder.read_metrics()
    except DucatError as error:
        return {**_UNKNOWN, "name": path.name, "state": f"damaged: {error.cause}"}
    kept = kept_row(rows, config)
    warning = rows[-1].warning if rows else ""
    ended = "collapsed" if warning.startswith(COLLAPSED) else "stopped"
    done = len(rows) == config.epochs
    return {
        "name": path.name,
        "state": "training" if folder.is_locked() else "finished" if done and ended == "stopped" else ended,
        "warning": sign_of(warning),
        "epoch": len(rows),
        "epochs": config.epochs,
        "method": f"{config.method}, {config.ducat}",
        "best_val_clean_accuracy": kept.val_clean_accuracy if kept else None,
        "best_val_pgd_accuracy": kept.val_pgd_accuracy if kept else None,
        "worst_case_accuracy": spec.robustness.worst_case_accuracy if spec and spec.robustness else None,
        "robustness": spec.robustness.summary() if spec and spec.robustness else NOT_MEASURED,
    }


_UNKNOWN: dict[str, Any] = {
    "warning": "",
    "epoch": 0,
    "epochs": 0,
    "method": "",
    "best_val_clean_accuracy": None,
    "best_val_pgd_accuracy": None,
    "worst_case_accuracy": None,
    "robustness": NOT_MEASURED,
}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
