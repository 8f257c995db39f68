"""The process that decodes: one image after the other from its standard input, until that ends.

It holds no key and no model, writes no file, and has bounds on its memory and on the time that an image takes. So an
image that breaks a decoder, or keeps it busy for ever, costs this process and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

from ducat_serve.images import ImageError, decode, fit, to_array
from service.child_process import close_inherited_files
from service.decoding.protocol import ANSWER, MAX_WORDS, READY, REQUEST, cpu_seconds

# The most that was measured is 22 bytes a pixel (lossless WebP with transparency; docs/performance/serving.md has the
# table).
_BYTES_PER_PIXEL = 32
_SPARE = 128 * 2**20  # bytes, for the file and small buffers
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # of prctl(2)


def main() -> None:
    """Answer requests until there are no more."""
    close_inherited_files()
    _end_with_the_server()
    _gain_no_rights()
    # Pillow warns once for every odd chunk, and a file may hold many thousand.
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # A dump would take longer than the process may live, and hold an image.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bounded = 0
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    # The server reads stderr until now, and learns so why a process does not start.
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    stdout.write(READY)
    stdout.flush()
    while len(head := stdin.read(REQUEST.size)) == REQUEST.size:
        number, max_pixels, height, width, channels, length = REQUEST.unpack(head)
        if max_pixels != bounded:
            bounded = max_pixels
            _bound_memory(max_pixels)
        data = stdin.read(length)
        _bound_time(max_pixels)
        try:
            array = to_array(fit(decode(data, max_pixels), (height, width)), channels)
        except ImageError as error:
            words = f"{error.code}:{error}".encode()[:MAX_WORDS]
            stdout.write(ANSWER.pack(number, False, len(words)) + words)
        else:
            stdout.write(ANSWER.pack(number, True, array.nbytes) + array.tobytes())
        stdout.flush()


def _end_with_the_server() -> None:
    """A server that is killed ends nothing itself, and an image may take long; Linux ends this process for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _gain_no_rights() -> None:
    """Neither this process nor what it starts becomes another user by a program such as sudo. On Linux only."""
    if sys.platform == "linux":
        nothing = ctypes.c_ulong(0)
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), nothing, nothing, nothing)


def _bound_memory(max_pixels: int) -> None:
    """Linux only says how much address space is taken; elsewhere there is no bound."""
    with contextlib.suppress(OSError, ValueError):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = taken + max_pixels * _BYTES_PER_PIXEL + _SPARE
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _bound_time(max_pixels: int) -> None:
    """Have the system end this process where it takes too long for its next image.

    Of CPU time, which is what an image costs: on a busy machine a sound one takes many times longer by the clock, and
    no client is to blame for that.
    """
    with contextlib.suppress(OSError, ValueError):  # the system's own bound is closer
        most = math.ceil(time.process_time()) + cpu_seconds(max_pixels)
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main()
