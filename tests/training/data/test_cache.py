"""The cache of decoded images on a disk that fills up, and after processes that were killed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from ducat_serve.errors import DucatError
from training.data.cache import cache_root, cached, new_images, write_split

LABELS = np.array([0, 1])


def decode_into(folder: Path) -> tuple[str, ...]:
    for split in ("train", "test"):
        images = new_images(folder, split, (2, 4, 4, 3))
        images[:] = 7
        np.save(folder / f"{split}_labels.npy", LABELS)
    return ("cat", "dog")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUCAT_CACHE", str(tmp_path / "cache"))


def left_behind() -> list[str]:
    return [path.name for path in (cache_root() / "decoded").iterdir()]


def test_the_place_on_the_disk_is_taken_before_anything_is_written_to_the_map(tmp_path: Path) -> None:
    """A map of a file with holes ends the process with a bus error once the disk is full."""
    new_images(tmp_path, "train", (100, 64, 64, 3))
    status = (tmp_path / "train.npy").stat()
    assert status.st_size > 100 * 64 * 64 * 3
    assert status.st_blocks * 512 >= status.st_size


def test_a_full_disk_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DucatError, match="No space left on device") as error:
        cached("key", decode_into)
    assert "DUCAT_CACHE" in (error.value.next_step or "")
    assert left_behind() == []


def test_everything_is_on_the_disk_before_it_gets_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("training.data.cache.sync", lambda path: synced.append(path.name))
    data = cached("key", decode_into)
    assert {"train.npy", "train_labels.npy", "test.npy", "test_labels.npy", "index.json"} < set(synced)
    assert (data.train.images[:].max(), data.class_names) == (7, ("cat", "dog"))


def test_what_a_killed_process_left_goes_and_what_another_one_decodes_stays() -> None:
    folder = cache_root() / "decoded"
    for name, age in ((".decoding-dead", 3 * 24 * 3600), (".decoding-alive", 60)):
        (folder / name).mkdir(parents=True)
        (folder / name / "train.npy").write_bytes(b"half")
        then = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (then, then))
    cached("key", decode_into)
    assert sorted(left_behind()) == [".decoding-alive", "key-v2"]


def test_splits_in_memory_are_written_too() -> None:
    def in_memory(folder: Path) -> tuple[str, ...]:
        for split in ("train", "test"):
            write_split(folder, split, np.full((2, 4, 4, 3), 9, np.uint8), LABELS)
        return ("cat", "dog")

    assert cached("key", in_memory).test.images[:].min() == 9


def test_two_that_decode_the_same_at_once_both_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, or machines that share a cache. To look before renaming is no help: the other may be in between."""
    monkeypatch.setattr(Path, "exists", lambda _: False)

    def slower(folder: Path) -> tuple[str, ...]:
        cached("key", decode_into)
        return decode_into(folder)

    assert cached("key", slower).class_names == ("cat", "dog")
    assert left_behind() == ["key-v2"]
