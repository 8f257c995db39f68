"""Decoded data sets on disk: uint8 arrays that are memory-mapped, made once per source."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from ducat_serve.atomic import cannot_write, sync
from ducat_serve.errors import DataError

CACHE_VERSION = 2
SPLITS = ("train", "val", "test")
Map = np.memmap[Any, np.dtype[np.uint8]]
_TEMPORARY = ".decoding-"
_STALE_SECONDS = 24 * 3600
_REMEDY = "free some space, or point DUCAT_CACHE at another folder"


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, H, W, channels] and labels int64 [N].

    Args:
        stored: the images, memory-mapped where they come from the cache.
        rows: which of the stored images these are, int64 [N]; None for all. They are read when they are asked for.
    """

    stored: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64] | None = None

    @property
    def images(self) -> NDArray[np.uint8]:
        """All images. Some rows of a memory map are copied into memory: `at` copies no more than is asked for."""
        return self.stored if self.rows is None else np.asarray(self.stored[self.rows])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `images`: (N, H, W, channels)."""
        return (len(self), *self.stored.shape[1:])

    def at(self, places: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at those places; no others are read."""
        return self.stored[places] if self.rows is None else np.asarray(self.stored[self.rows[places]])

    def row(self, place: int) -> int:
        """Where an image is among those that are stored."""
        return place if self.rows is None else int(self.rows[place])

    def first(self, count: int) -> Split:
        """The first images alone; nothing is read."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return Split(self.stored, self.labels[:count], rows[:count])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Decoded:
    """A decoded data set; ``val`` is None where it has to be held out of ``train``.

    ``digest`` is the SHA-256 of what it holds (names, labels, pixels), wherever that came from.
    """

    class_names: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split
    digest: str


def cache_root() -> Path:
    """`$DUCAT_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("DUCAT_CACHE") or user_cache_path("ducat"))


def cached(key: str, decode_into: Callable[[Path], tuple[str, ...]]) -> Decoded:
    """Map the data set ``key`` from the cache; if it is not there, decode it first.

    Args:
        key: names the source and how it is decoded.
        decode_into: writes the splits with `write_split` into a folder and returns the class names.

    Raises:
        DataError: what ``decode_into`` raises, or a damaged cache. DucatError: the cache cannot be written.
    """
    folder = cache_root() / "decoded" / f"{key}-v{CACHE_VERSION}"
    if not (folder / "index.json").is_file():
        _fill(folder, decode_into)
    return _map(folder)


def new_images(folder: Path, name: str, shape: tuple[int, ...]) -> Map:
    """The images of one split, uint8 of ``shape``, memory-mapped for writing.

    Their place on the disk is taken first: writing to a map on a full disk ends the process with a bus error.
    """
    path = folder / f"{name}.npy"
    images: Map = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def write_split(folder: Path, name: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Write one split whose images are in memory."""
    np.save(folder / f"{name}.npy", images)
    np.save(folder / f"{name}_labels.npy", labels)


def content_digest(class_names: tuple[str, ...], splits: list[Split]) -> str:
    """SHA-256 of class names, labels and pixels."""
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for split in splits:
        digest.update(str(split.images.shape).encode())
        digest.update(np.ascontiguousarray(split.labels).data)
        for start in range(0, len(split), 4096):  # never the whole memory map at once
            digest.update(np.ascontiguousarray(split.images[start : start + 4096]).data)
    return digest.hexdigest()


def _fill(folder: Path, decode_into: Callable[[Path], tuple[str, ...]]) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder.parent)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_TEMPORARY))
    except OSError as error:
        raise cannot_write(folder, error, _REMEDY) from error
    try:
        class_names = decode_into(temporary)
        splits = [split for name in SPLITS if (split := _split(temporary, name)) is not None]
        index = {"class_names": class_names, "digest": content_digest(class_names, splits)}
        (temporary / "index.json").write_text(json.dumps(index))
        for file in temporary.iterdir():
            sync(file)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
        sync(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error, _REMEDY) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    """Folders that a decoding left when it was killed; one of a decoding that goes on is younger."""
    for left in parent.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _map(folder: Path) -> Decoded:
    try:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text())
        train, val, test = (_split(folder, name) for name in SPLITS)
        if train is None or test is None:
            raise ValueError("a split is missing")
        return Decoded(tuple(index["class_names"]), train, val, test, index["digest"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"The cache folder {folder} is incomplete or corrupt ({error}).", f"delete {folder} and run again"
        ) from error


def _split(folder: Path, name: str) -> Split | None:
    if not (folder / f"{name}.npy").is_file():
        return None
    images: NDArray[np.uint8] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return Split(images, np.load(folder / f"{name}_labels.npy", allow_pickle=False))
