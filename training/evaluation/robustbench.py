"""A report in the form of RobustBench's leaderboard (`model_info/DATASET/NORM/NAME.json` of its repository)."""

from __future__ import annotations

import json
from typing import Any

from ducat_serve.errors import UsageError
from ducat_serve.report import RobustnessReport
from ducat_serve.threat_model import format_size

_NORMS = {"linf": "Linf", "l2": "L2"}
# Left for the author to fill in, as in the files that RobustBench's own `benchmark()` writes.
_BY_HAND = ("link", "name", "authors", "venue", "additional_data")
# What RobustBench calls the data sets that it has; a copy of one that was compressed again, say, is another one.
_DATASETS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
_AUTOATTACK = "autoattack"


def require_leaderboard(norm: str) -> None:
    """Raise UsageError for a norm that has no leaderboard."""
    if norm not in _NORMS:
        raise UsageError(
            f"RobustBench has leaderboards for {' and '.join(_NORMS)}, not for {norm}.",
            "leave out --export robustbench",
        )


def robustbench_entry(report: RobustnessReport, architecture: str) -> str:
    """The JSON file of a leaderboard entry.

    ``autoattack_acc`` is there only where AutoAttack alone broke images, which it chose from all pixel values: that is
    what others measured. Any other worst case is ``external``, RobustBench's word for a stronger evaluation than its
    own, so it must be one. Percentages with two digits.

    Raises UsageError for a norm that has no leaderboard, and for attacks that saw only scores or only screen.
    """
    require_leaderboard(report.norm)
    if report.scores_only or report.is_screening:
        what = "Attacks by scores alone are" if report.scores_only else "A screening is"
        raise UsageError(f"{what} no worst case for a leaderboard.", "measure with --suite standard or full")
    alone = [attack.name for attack in report.attacks] == [_AUTOATTACK] and not report.broken_by_checks
    is_autoattack = alone and report.lattice is None
    accuracy = f"{100 * report.worst_case_accuracy:.2f}"
    attacks = ", ".join(attack.name for attack in report.attacks)
    footnote = f"{report.examples} {report.split} images of {report.dataset}, by {attacks}"
    if report.lattice is not None:
        footnote += ", attacked within images of 8 bits"
    entry: dict[str, Any] = dict.fromkeys(_BY_HAND)
    entry |= {
        "number_forward_passes": 1,
        "dataset": _DATASETS.get(report.dataset, report.dataset),
        "architecture": architecture,
        "eps": format_size(report.eps),
        "clean_acc": f"{100 * report.clean_accuracy:.2f}",
        "reported": accuracy,
        "autoattack_acc" if is_autoattack else "external": accuracy,
        "footnote": footnote,
        "unreliable": bool(report.failed_checks or report.is_unchecked or report.doubts),
    }
    return json.dumps(entry, indent=2) + "\n"
