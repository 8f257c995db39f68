"""The process that decodes: one image after the other from its standard input, until that ends.

It holds no key and no model, writes no file, and has a bound on its memory. So an image that breaks a decoder, or keeps
it busy for ever, costs this process and nothing else.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

from ducat_serve.images import ImageError, decode, fit, to_array
from service.decoding.protocol import ANSWER, READY, REQUEST

# The most that was measured is 22 bytes a pixel (lossless WebP with transparency; docs/performance.md has the table).
_BYTES_PER_PIXEL = 32
_SPARE = 128 * 2**20  # bytes, for the file and small buffers


def main() -> None:
    """Answer requests until there are no more."""
    warnings.simplefilter(
        "ignore"
    )  # Pillow warns once for every odd chunk, and a file may hold many thousand
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bounded = 0
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    stdout.write(READY)
    stdout.flush()
    while len(head := stdin.read(REQUEST.size)) == REQUEST.size:
        max_pixels, height, width, channels, length = REQUEST.unpack(head)
        if max_pixels != bounded:
            bounded = max_pixels
            _bound_memory(max_pixels)
        data = stdin.read(length)
        try:
            array = to_array(fit(decode(data, max_pixels), (height, width)), channels)
        except ImageError as error:
            _answer(stdout, False, f"{error.code}:{error}".encode())
        else:
            _answer(stdout, True, array.tobytes())


def _answer(stdout: BinaryIO, decoded: bool, content: bytes) -> None:
    stdout.write(ANSWER.pack(decoded, len(content)) + content)
    stdout.flush()


def _bound_memory(max_pixels: int) -> None:
    """Linux only says how much address space is taken; elsewhere there is no bound."""
    with contextlib.suppress(OSError, ValueError):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = taken + max_pixels * _BYTES_PER_PIXEL + _SPARE
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main()
