"""`--bar clean=0.80,worst_case=0.45`: what a model must reach to be released."""

from __future__ import annotations

from typing import Any

import click

from ducat_serve.errors import UsageError, VerificationError
from ducat_serve.report import RobustnessReport, only_screen

_LONGER = "run longer attacks: --suite standard"


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
            self.fail(f"'{value}' is not like clean=0.80,worst_case=0.45 (shares, not per cent)", param, ctx)
        return bar


def require_worst_case_attacks(what: str, suite: str, attacks: tuple[str, ...]) -> None:
    """Raise UsageError, before minutes of attacks, where ``what`` needs a worst case and these only screen."""
    if attacks and only_screen(attacks):
        raise UsageError(
            f"{what}: {', '.join(attacks)} is a screening, which does not show a worst case.", _LONGER
        )
    if not attacks and suite == "quick":
        raise UsageError(
            f"{what}: the suite quick is a screening, which does not show a worst case.", _LONGER
        )


def require(report: RobustnessReport, bar: dict[str, float]) -> None:
    """Raise VerificationError where the lower end of a measured 95 % interval is below the bar, or means nothing."""
    if "worst_case" in bar:
        _require_meaning(report)
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


def _require_meaning(report: RobustnessReport) -> None:
    """Raise VerificationError where the report says itself that its worst case may flatter."""
    if report.scores_only:
        raise VerificationError(
            "Attacks saw only scores, which flatters: the bar is for attacks that follow gradients.",
            "hold the bar against the checkpoint",
        )
    if report.is_screening:
        raise VerificationError("These attacks are a screening: they do not show a worst case.", _LONGER)
    if report.failed_checks:
        names = ", ".join(check.name for check in report.failed_checks)
        raise VerificationError(
            f"Gradient masking suspected: not so that {names}. The worst case may be far lower than these attacks say.",
            "find out why before it is released: docs/evaluation.md, sanity checks",
        )
    if report.doubts:
        raise VerificationError(
            f"The measurement is doubtful: {report.doubts[0]}.",
            "mend that, or attack the model by code of your own",
        )
    if report.is_unchecked:
        raise VerificationError(
            "Nothing was said of gradient masking: too few images were right to check it.",
            "measure on more images",
        )
