"""CIFAR-10 and CIFAR-100 in their binary version (the Python version is a pickle, which is never loaded).

Format (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html): records of one label byte (CIFAR-100:
coarse, then fine) and 3,072 pixel bytes, channel by channel.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ducat_serve.errors import DataError
from training.data.cache import Decoded, cached, write_split
from training.data.trees import cannot_read, refuse_escape

_PIXELS = 3 * 32 * 32
# CIFAR-100's training images are 154 MB in one file. A small archive can unfold to anything.
MAX_MEMBER_BYTES = 256 << 20
MAX_ARCHIVE_BYTES = 1 << 30


@dataclass(frozen=True)
class CifarFormat:
    """Where records, labels and class names are inside the archive."""

    label_bytes: int
    train: tuple[str, ...]
    test: str
    names: str


CIFAR10 = CifarFormat(
    1, tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"
)
CIFAR100 = CifarFormat(2, ("train.bin",), "test.bin", "fine_label_names.txt")


def read_cifar(path: Path, layout: CifarFormat) -> Decoded:
    """Read the binary archive, once. Raises DataError where it cannot be read, is truncated or of another layout."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise cannot_read(path, error) from error

    def decode_into(folder: Path) -> tuple[str, ...]:
        files = _members(path, {*layout.train, layout.test, layout.names})
        missing = [n for n in (*layout.train, layout.test, layout.names) if n not in files]
        if missing:
            raise DataError(f"{path} holds no {missing[0]}; it is not the binary version of CIFAR.")
        try:
            class_names = tuple(files[layout.names].decode().split())
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {layout.names} is not UTF-8 text ({error}).") from error
        for split, names in (("train", layout.train), ("test", (layout.test,))):
            parts = [_records(files[name], layout, len(class_names), f"{path}: {name}") for name in names]
            images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            write_split(folder, split, images, labels)
        return class_names

    return cached(digest[:32], decode_into)


class _BoundedGzip(gzip.GzipFile):
    """A stream that ends in a DataError where it is more than any CIFAR archive, whatever headers inside say."""

    def read(self, size: int | None = -1) -> bytes:
        length = MAX_MEMBER_BYTES + 1 if size is None or size < 0 else size
        self._bound(length, self.tell() + length)
        return super().read(length)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._bound(0, offset)
        return super().seek(offset, whence)

    def _bound(self, length: int, end: int) -> None:
        if length > MAX_MEMBER_BYTES or end > MAX_ARCHIVE_BYTES:
            raise DataError(
                f"{self.name} unfolds to more than any CIFAR archive does; nothing of it is used.",
                "do not use this archive; get it from its original source",
            )


def _members(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """The ``wanted`` files by their names without folders; others are passed over."""
    files: dict[str, bytes] = {}
    try:
        with _BoundedGzip(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                refuse_escape(member.name, path)
                name = Path(member.name).name
                # A sparse file is mostly holes, which take no place in the archive, but in memory.
                is_wanted = name in wanted and member.isfile() and not member.issparse()
                content = archive.extractfile(member) if is_wanted else None
                if content is not None:
                    files[name] = content.read()
            while stream.read(1 << 20):  # gzip's checksum comes after the end of the archive
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not a readable .tar.gz archive; it is truncated or corrupt ({error}).",
            f"delete {path} and run the command again to download it",
        ) from error
    return files


def _records(
    data: bytes, layout: CifarFormat, classes: int, source: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    length = layout.label_bytes + _PIXELS
    if not data or len(data) % length:
        raise DataError(f"{source} is not a whole number of {length}-byte records.")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, length)
    labels = records[:, layout.label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(f"{source} holds label {labels.max()} of {classes} classes.")
    images = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels
