"""Read what must be a file on the disk: a FIFO or a device could keep us waiting for ever."""

from __future__ import annotations

import os
import stat
from itertools import islice
from pathlib import Path

from ducat_serve.errors import DataError, near_name

_MANY = 1000  # names in a folder; to compare with more takes a second, for each path of a list


def read_regular_file(path: Path, name: str, next_step: str, most: int = -1) -> bytes:
    """The bytes of a file, or its first ``most``.

    Args:
        name: what it is called in messages, such as "the public key k.pem".
        next_step: what to do where it cannot be read.

    Raises DataError where there is no such file, it cannot be read, or it is no regular one.
    """
    try:
        # The open file is asked and not its path, which may lead elsewhere a moment later.
        with open(path, "rb", opener=_open_at_once) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read(most)
    except OSError as error:
        near = near_path(path) if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"Cannot read {name}: {error.strerror}.{near}", next_step) from error
    raise DataError(f"Cannot read {name}: it is not a file.", next_step)


def near_path(path: Path) -> str:
    """Of a path that is not there: " Did you mean ...?", where a name beside it is very like its own, else nothing."""
    missing = path
    try:
        if path.exists():
            return ""
        while not missing.parent.exists():
            missing = missing.parent
        beside = [p.name for p in islice(missing.parent.iterdir(), _MANY)]
        near = near_name(missing.name, beside, cutoff=0.7) if len(beside) < _MANY else None
        meant = near and missing.with_name(near) / path.relative_to(missing)
        return f" Did you mean {meant}?" if meant and meant.exists() else ""
    except (OSError, ValueError):  # a folder that may not be read, or a name that no file system takes
        return ""


def _open_at_once(path: str, flags: int) -> int:
    """To open a FIFO would otherwise wait for somebody who writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)
