"""Nothing is left half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ducat_serve import atomic
from ducat_serve.errors import DucatError


def test_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="boom"), atomic.replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("boom")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    atomic.write_text(target, "new")
    assert target.read_text() == "new"


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(DucatError, match="No space left"), atomic.replacing(target) as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"x" * 100_000)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_failing_sync_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DucatError, match="Input/output error"):
        atomic.write_text(target, "new")
    assert target.read_text() == "old"


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DucatError, match="Cannot write") as caught:
        atomic.write_text(tmp_path / "file" / "below", "x")
    assert "another folder" in str(caught.value), "not every command has --out"


def test_what_is_asked_before_the_work_is_what_writing_needs(tmp_path: Path) -> None:
    atomic.require_writable(tmp_path / "new" / "folder" / "file")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(DucatError, match="Cannot write"):
            atomic.require_writable(path)


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """To write to /dev/null, as root, would leave a file there for everybody else; so no test tries that itself."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (atomic.require_writable, lambda path: atomic.write_text(path, "x")):
        with pytest.raises(DucatError, match="device or a pipe"):
            write(pipe)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real, link = tmp_path / "store" / "v1", tmp_path / "current"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    atomic.write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o600
    assert {file.name for file in tmp_path.rglob("*")} == {"store", "v1", "current"}


def test_a_file_system_that_cannot_sync_a_folder_still_has_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = atomic.sync

    def of_files_alone(path: Path) -> None:
        if path.is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        real(path)

    monkeypatch.setattr(atomic, "sync", of_files_alone)
    atomic.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
