"""A robustness report in a file of its own, as `ducat evaluate` writes it beside a model of others."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from ducat_serve.errors import DataError
from ducat_serve.report import RobustnessReport


def read_report(file: Path) -> RobustnessReport | None:
    """The report; None where there is no such file. Raises DataError where the file is no report, or damaged."""
    try:
        return RobustnessReport.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DataError(f"{file} is not a robustness report.", "name another file") from error
