"""CIFAR-10 and CIFAR-100 in their binary version (the Python version is a pickle, which is never loaded).

Format (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html): records of one label byte (CIFAR-100:
coarse, then fine) and 3,072 pixel bytes, channel by channel.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ducat_serve.errors import DataError
from training.data.cache import Decoded, cached, write_split
from training.data.trees import refuse_escape

_PIXELS = 3 * 32 * 32


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
    """Read the binary archive, once. Raises DataError where it is truncated or of another layout."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()

    def decode_into(folder: Path) -> tuple[str, ...]:
        files = _members(path)
        missing = [n for n in (*layout.train, layout.test, layout.names) if n not in files]
        if missing:
            raise DataError(f"{path} holds no {missing[0]}; it is not the binary version of CIFAR.")
        class_names = tuple(files[layout.names].decode().split())
        for split, names in (("train", layout.train), ("test", (layout.test,))):
            parts = [_records(files[name], layout, len(class_names), f"{path}: {name}") for name in names]
            images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            write_split(folder, split, images, labels)
        return class_names

    return cached(digest[:32], decode_into)


def _members(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                refuse_escape(member.name, path)
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    files[Path(member.name).name] = content.read()
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
