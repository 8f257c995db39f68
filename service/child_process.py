"""What the processes that the server starts have of it: the way to their packages, but no keys and no open files."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_LIBRARIES = "LD_LIBRARY_PATH"  # without it some Pythons do not start


def child_environment() -> dict[str, str]:
    """Packages are looked for where this process finds them, ours first; a working directory is no such place."""
    places = [str(_ROOT), *(place for place in sys.path if place and place != str(_ROOT))]
    environment = {"PYTHONPATH": os.pathsep.join(places), "PATH": os.environ.get("PATH", "")}
    if _LIBRARIES in os.environ:
        environment[_LIBRARIES] = os.environ[_LIBRARIES]
    return environment


def close_inherited_files() -> None:
    """Close all but stdin, stdout and stderr: what reads a stranger's file shall hold no client's connection.

    Under uvloop a new process has every file that is not marked otherwise, the listening socket of `bentoml serve` too.
    """
    for file in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        if file > sys.stderr.fileno():
            with contextlib.suppress(OSError):  # it was that of the listing
                os.close(file)
