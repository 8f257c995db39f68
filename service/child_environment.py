"""What the processes that the server starts need of its environment: the way to their packages, and no keys."""

from __future__ import annotations

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
