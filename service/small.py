"""Which images are decoded at once on the event loop: those that cost less than handing them to a thread and back.

Decoding must never hold up other requests, so only what is bounded before it is decoded counts: a PNG of few bytes and
few pixels by its header, without compressed texts or profiles beside the picture.
"""

from __future__ import annotations

import struct

MAX_BYTES = 16 * 1024
MAX_PIXELS = 64 * 64  # of one request; about 0.15 ms
_LEAST_PIXELS = 32 * 32  # what the smallest image counts for
_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_MAY_INFLATE = (b"zTXt", b"iTXt", b"iCCP")


def small_images(files: list[bytes]) -> int:
    """How many of the first files are small enough together."""
    left = MAX_PIXELS
    for number, data in enumerate(files):
        left -= _pixels(data)
        if left < 0:
            return number
    return len(files)


def _pixels(data: bytes) -> int:
    if len(data) > MAX_BYTES or data[:16] != _START or len(data) < 24:
        return MAX_PIXELS + 1
    if any(kind in data for kind in _MAY_INFLATE):
        return MAX_PIXELS + 1
    width, height = struct.unpack_from(">II", data, 16)
    return max(_LEAST_PIXELS, int(width * height))
