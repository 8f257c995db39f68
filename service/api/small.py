"""Which images are decoded at once on the event loop: those that cost less than handing them to a thread and back.

Decoding must never hold up other requests, so only what is bounded before it is decoded counts: a PNG of few bytes, of
few pixels by its one header, and of few chunks, all of kinds that cost nothing (no text, profile or EXIF).
"""

from __future__ import annotations

import struct

MAX_BYTES = 16 * 1024
MAX_PIXELS = 64 * 64  # of one request; about 0.15 ms
_LEAST_PIXELS = 32 * 32  # what the smallest image counts for
_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_HEADER = 33  # bytes: the signature and the whole IHDR chunk
_PLAIN = {b"PLTE", b"tRNS", b"IDAT", b"sRGB", b"gAMA", b"cHRM", b"pHYs"}
_MAX_CHUNKS = 16


def small_images(files: list[bytes]) -> int:
    """How many of the first files are small enough together."""
    left = MAX_PIXELS
    for number, data in enumerate(files):
        left -= _pixels(data)
        if left < 0:
            return number
    return len(files)


def _pixels(data: bytes) -> int:
    if len(data) > MAX_BYTES or data[:16] != _START or not _is_plain(data):
        return MAX_PIXELS + 1
    width, height = struct.unpack_from(">II", data, 16)
    return max(_LEAST_PIXELS, int(width * height))


def _is_plain(data: bytes) -> bool:
    """Whether nothing costly, and no second header, is behind the first one."""
    at = _HEADER
    for _ in range(_MAX_CHUNKS):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if kind == b"IEND":
            return True
        if kind not in _PLAIN:
            return False
        at += length + 12
    return False
