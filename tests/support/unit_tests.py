"""What a unit test is: it trains nothing and starts no process. Every test is one unless it says or shows otherwise."""

from __future__ import annotations

import multiprocessing.process
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

# Fixtures of conftest.py that train or export; those that build on them bring their names along.
_TRAINED = {"run_folder", "other_model"}
_EXCEPTIONS = ("slow", "integration")
# Programs that look something up: a library for the first import of torch, and the commit that a run records.
_LOOK_UPS = ("ldconfig", "git")


def mark_unit_tests(items: list[pytest.Item]) -> None:
    """Mark as `unit` what is outside of end_to_end/, uses no trained model, and is neither `slow` nor `integration`."""
    for item in items:
        is_whole = "end_to_end" in item.path.parts or _TRAINED & set(getattr(item, "fixturenames", ()))
        if not is_whole and not any(item.get_closest_marker(name) for name in _EXCEPTIONS):
            item.add_marker("unit")


@contextmanager
def nothing_starts_or_trains(item: pytest.Item) -> Iterator[None]:
    """Fail ``item`` if it starts a process or a training, so that no unmarked test is one by mistake."""

    def forbidden(*_: object, **__: object) -> NoReturn:
        # Not an Exception, so the code under test cannot catch it.
        pytest.fail(f"{item.nodeid} starts a process or trains: mark it with pytest.mark.integration")

    start = subprocess.Popen.__init__

    def start_unless_forbidden(process: subprocess.Popen[Any], *arguments: Any, **options: Any) -> None:
        command = (arguments or (options.get("args"),))[0]
        program = command[0] if isinstance(command, list | tuple) else command
        if Path(str(program)).name not in _LOOK_UPS:
            forbidden()
        start(process, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", start_unless_forbidden)
        patch.setattr(subprocess.Popen, "__del__", lambda _: None)  # of objects that were never made
        patch.setattr(multiprocessing.process.BaseProcess, "start", forbidden)
        # Importing torch would cost every run seconds; where all tests are collected it is imported anyway.
        if trainer := sys.modules.get("training.trainer"):
            patch.setattr(trainer.Trainer, "run", forbidden)
        yield
