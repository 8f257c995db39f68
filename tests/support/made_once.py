"""What takes long to make: one of the processes that share the tests (pytest-xdist) makes it, the others copy it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from filelock import FileLock


class Temporary(Protocol):
    """What is needed of pytest's `tmp_path_factory`: the process's own folder, and new ones in it."""

    def getbasetemp(self) -> Path: ...

    def mktemp(self, basename: str) -> Path: ...


def made_once(name: str, temporary: Temporary, make: Callable[[Path], None]) -> Path:
    """A folder with what ``make`` writes into it, for this process alone: what it changes there no other sees.

    ``make`` gets a folder that is there and empty. Who comes second waits until the first is through; where ``make``
    raises, the next one tries again.
    """
    own = temporary.mktemp(name)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        make(own)
        return own
    # Each worker has a folder of its own in the one of the whole run.
    shared = temporary.getbasetemp().parent / "made-once" / name
    shared.parent.mkdir(exist_ok=True)
    with FileLock(shared.with_suffix(".lock")):
        if not shared.exists():
            unfinished = shared.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(shared)
    shutil.copytree(shared, own, symlinks=True, dirs_exist_ok=True)
    return own
