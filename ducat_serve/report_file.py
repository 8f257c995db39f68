"""A robustness report in a file of its own, as `ducat evaluate` writes it beside a model of others."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from ducat_serve.errors import DataError
from ducat_serve.regular_file import read_regular_file
from ducat_serve.report import RobustnessReport

_NEXT_STEP = "name another file"


def read_report(file: Path) -> RobustnessReport | None:
    """The report; None where there is no such file. Raises DataError where the file is no report, or damaged."""
    try:
        if not file.exists():
            return None
    except OSError as error:
        raise DataError(f"Cannot read the report {file}: {error.strerror}.", _NEXT_STEP) from error
    content = read_regular_file(file, f"the report {file}", _NEXT_STEP)
    try:
        return RobustnessReport.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{file} is not a robustness report.", _NEXT_STEP) from error
