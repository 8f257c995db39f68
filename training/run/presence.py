"""A mark that a process puts on a file while it works, and that others see without touching it.

Looking at a lock by trying to take it makes another process that tries at that moment fail. The kernel's locks of open
file descriptions (Linux, fcntl(2), "F_OFD_GETLK") can be asked about instead.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

CAN_LOOK = sys.platform == "linux"
_FLOCK = "hhqqi0q"  # struct flock: l_type, l_whence, l_start, l_len (0 is to the end), l_pid


@contextlib.contextmanager
def marked(path: Path) -> Iterator[None]:
    """Mark ``path`` until this block, or the process, ends; several processes can mark the same file.

    Raises OSError where the file cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if sys.platform == "linux":
            import fcntl

            # Shared, and nobody ever takes it exclusively: it cannot fail because of others.
            fcntl.fcntl(
                descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            )
        yield
    finally:
        os.close(descriptor)


def is_marked(path: Path) -> bool:
    """Whether a process marks ``path`` now; on Linux only (`CAN_LOOK`). Raises OSError where it cannot be read."""
    if sys.platform != "linux":
        raise NotImplementedError(f"no lock can be looked at on {sys.platform}")
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # "Who would be in the way of an exclusive lock?" Nothing is taken.
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, question)
    finally:
        os.close(descriptor)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
