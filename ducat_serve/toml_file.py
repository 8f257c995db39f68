"""Read a TOML file that somebody wrote by hand."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ducat_serve.errors import UsageError
from ducat_serve.regular_file import read_regular_file


def read_toml(path: Path, name: str, next_step: str) -> dict[str, Any]:
    """The document in a file.

    Args:
        name: what the file is called in messages, such as "the config file c.toml".
        next_step: what to do where it cannot be read.

    Raises:
        DataError: there is no such file, or it cannot be read. UsageError: it is no TOML.
    """
    data = read_regular_file(path, name, next_step)
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # some editors begin a file with a mark
    except RecursionError as error:
        raise UsageError(
            f"{path} is not valid TOML: it is nested too deeply.", "correct that line"
        ) from error
    except ValueError as error:  # also what is no UTF-8, and numbers of thousands of digits
        raise UsageError(f"{path} is not valid TOML: {error}.", "correct that line") from error
