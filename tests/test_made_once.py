"""Processes that share the tests make a thing once, and each has a copy of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.made_once import made_once


class Worker:
    """Temporary folders as a worker of pytest-xdist has them: in a folder of its own, beside those of the others."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder

    def getbasetemp(self) -> Path:
        return self._folder

    def mktemp(self, basename: str) -> Path:
        (self._folder / basename).mkdir()
        return self._folder / basename


def writer(made: list[Path]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("as it was made")

    return make


def test_workers_make_a_thing_once_and_change_their_own_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    made: list[Path] = []
    one = made_once("thing", Worker(tmp_path / "gw0"), writer(made))
    (one / "file").write_text("changed")
    other = made_once("thing", Worker(tmp_path / "gw1"), writer(made))
    assert len(made) == 1
    assert one != other
    assert (other / "file").read_text() == "as it was made"


def test_a_process_alone_makes_it_where_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    made: list[Path] = []
    assert made_once("thing", Worker(tmp_path / "alone"), writer(made)) == made[0]
    assert [path.name for path in tmp_path.iterdir()] == ["alone"]


def test_what_failed_is_made_again_from_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("as if the disk were full")

    with pytest.raises(OSError, match="full"):
        made_once("thing", Worker(tmp_path / "gw0"), fail)
    made = made_once("thing", Worker(tmp_path / "gw1"), writer([]))
    assert [path.name for path in made.iterdir()] == ["file"]
