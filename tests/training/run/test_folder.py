"""A run folder beside others: who looks at it stops nobody, and what is damaged in it is named."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ducat_serve.errors import DataError
from training.run import folder as folder_module
from training.run.folder import RunFolder

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere looking takes the lock")


@on_linux
def test_starts_beside_many_looks_never_fail(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    enough = threading.Event()

    def look() -> None:
        while not enough.is_set():
            folder.is_locked()

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(300):
            with folder.locked():
                assert folder.is_locked()
    finally:
        enough.set()
        for looker in lookers:
            looker.join()
    assert not folder.is_locked()


@on_linux
def test_looking_writes_nothing(tmp_path: Path) -> None:
    assert not RunFolder(tmp_path).is_locked()
    assert not RunFolder(tmp_path / "none").is_locked()
    assert list(tmp_path.iterdir()) == []


@on_linux
@pytest.mark.integration
def test_a_killed_process_is_no_longer_seen(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from training.run.folder import RunFolder\n"
        f"with RunFolder(Path({str(tmp_path)!r})).locked(): print('here', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        assert RunFolder(tmp_path).is_locked()
        process.kill()
        process.wait()
    assert not RunFolder(tmp_path).is_locked()


def test_where_no_lock_can_be_looked_at_it_is_tried_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "CAN_LOOK", False)
    folder = RunFolder(tmp_path)
    assert not folder.is_locked()
    with folder.locked():
        assert folder.is_locked()
    assert not folder.is_locked()


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"config": []}', b'{"config": 3, "data_dir": 3}'],
    ids=["empty", "a list", "nothing in it", "no text", "deep", "a list as config", "a number as config"],
)
def test_a_damaged_configuration_is_named(text: bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_bytes(text)
    with pytest.raises(DataError, match=r"config\.json is damaged"):
        folder.read()


def test_a_run_that_was_stopped_before_its_settings_were_saved_is_started_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(DataError, match="There is no run"):
        folder.read()
    with folder.locked():
        pass
    with pytest.raises(DataError, match="stopped before its settings were saved"):
        folder.read()


def test_metrics_with_a_field_beyond_all_bounds_are_damaged(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("epoch\n" + "1" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"metrics\.csv is damaged"):
        folder.read_metrics()
