"""Where a report goes that is not stored in its model: no other one is lost for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from ducat_serve.errors import DucatError
from ducat_serve.output import Output
from ducat_serve.report import RobustnessReport
from ducat_serve.report_file import read_report
from training.evaluation.comparison import losses


def beside_a_better_one(report: RobustnessReport, file: Path, output: Output) -> Path:
    """Where a report goes that nobody named a place for: ``file``, or the next with a number that may hold it.

    One that says more stays where it is, and so does one of another model, as of the same callable with other weights
    by now, and a file that is no report.
    """
    place, kept = file, ""
    for number in itertools.count(2):
        if not (kept_here := _why_it_stays(place, report)):
            break
        kept = kept or kept_here
        place = _numbered(file, number)
    if kept:
        output.warn(
            f"{file} stays: {kept}. The new one is {place}; --replace would have put it in the place of the other."
        )
    return place


def _why_it_stays(place: Path, report: RobustnessReport) -> str:
    """Why a report may not be written to ``place``; empty where it may."""
    try:
        old = read_report(place)
    except DucatError as error:
        return error.cause.rstrip(".")
    if old is None:
        return ""
    if not old.is_of(report.weights_digest, report.takes):
        return f"it is of another model ({old.summary()})"
    found = losses(old, report)
    return f"the new report says less than it ({', '.join(found)}): {old.summary()}" if found else ""


def _numbered(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}-{number}{file.suffix}")


def existing_reports(file: Path) -> Iterator[Path]:
    """``file`` and those with numbers that `beside_a_better_one` made."""
    place = file
    for number in itertools.count(2):
        if not place.exists():
            return
        yield place
        place = _numbered(file, number)
