"""`--bar clean=0.80,worst_case=0.45`: what a model must reach to be released."""

from __future__ import annotations

from typing import Any

import click

from ducat_serve.errors import UsageError, VerificationError
from ducat_serve.report import RobustnessReport

_LONGER = "hold the bar against longer attacks: --suite standard"


class Bar(click.ParamType[dict[str, float]]):
    """`clean=0.80,worst_case=0.45`, either or both."""

    name = "bar"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, float]:
        if isinstance(value, dict):
            return value
        bar: dict[str, float] = {}
        for part in str(value).split(","):
            name, _, number = part.partition("=")
            if name.strip() in bar:  # one of the two would be a bar that nobody has to reach
                self.fail(f"'{value}' says {name.strip()} twice", param, ctx)
            try:
                bar[name.strip()] = float(number)
            except ValueError:
                self.fail(f"'{part}' is not NAME=FRACTION", param, ctx)
        if not set(bar) <= {"clean", "worst_case"} or not all(0 <= b <= 1 for b in bar.values()):
            self.fail(f"'{value}' is not like clean=0.80,worst_case=0.45", param, ctx)
        return bar


def require_no_screening(bar: dict[str, float], suite: str, attacks: tuple[str, ...]) -> None:
    """Raise UsageError, before minutes of attacks, where a worst case is wanted of attacks that only screen."""
    if "worst_case" in bar and suite == "quick" and not attacks:
        raise UsageError("The suite quick is a screening: it does not show a worst case.", _LONGER)


def require(report: RobustnessReport, bar: dict[str, float]) -> None:
    """Raise VerificationError where the lower end of a measured 95 % interval is below the bar, or means nothing."""
    if "worst_case" in bar and report.is_screening:
        raise VerificationError("These attacks are a screening: they do not show a worst case.", _LONGER)
    if report.clean_interval is None:
        raise VerificationError(
            "The report has no interval of the clean accuracy: it was measured by an older version.",
            "measure again with `ducat evaluate`",
        )
    lower_ends = {"clean": report.clean_interval[0], "worst_case": report.worst_case_interval[0]}
    missed = [
        f"{name} is at least {lower_ends[name]:.1%} (95 % interval), the bar is {wanted:.1%}"
        for name, wanted in bar.items()
        if lower_ends[name] < wanted
    ]
    if missed:
        raise VerificationError(f"Below the bar: {'; '.join(missed)}.", "measure on more images, or train on")
