"""Bounds on the structure of image files, checked before any decoder sees them.

The number of pixels does not bound the work: a progressive JPEG may hold any number of scans (each costs milliseconds
of CPU and 34 bytes for each of its components), a JPEG any number of empty segments and a PNG any number of empty
chunks (each costs a turn of Pillow's Python code). The same holds for the blocks before a GIF's first frame, and for
the lists of a TIFF. Real files are far below these bounds: encoders write a dozen scans, of 14 components in all, and
chunks and segments of kilobytes. Nor do they write arithmetic coding, where a scan without a byte of data takes as long
as one with all of them: 63 of 25 megapixels, 11 seconds for a file of a kilobyte.
"""

from __future__ import annotations

import re
from typing import Literal

MAX_SCANS = 64  # of a JPEG, where one of several components counts as so many
MAX_SEGMENTS = 2048  # of a JPEG: an ICC profile may take 255, extended XMP of a phone some hundred
MAX_STRAY = 64 * 1024  # bytes of a JPEG that belong to no segment and no scan; Pillow reads them one by one
MAX_CHUNKS = 8192  # of a PNG: 16 MiB in chunks of 2 KiB
MAX_BLOCKS = 8192  # of a GIF, before its first frame: 2 MiB of comments and profiles
MAX_VALUES = 65536  # of one tag of a TIFF, such as the places of its strips; Pillow makes objects of them

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
# A marker in entropy-coded data: not a stuffed byte (FF 00), not a restart marker, which are part of the data.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ARITHMETIC = {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # start of a frame that is coded so
_GIF = (b"GIF87a", b"GIF89a")
_TIFF: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_BIG_TIFF = (b"II+\0", b"MM\0+")
_TIFF_BYTES = {1, 2, 6, 7}  # types of tags that stay one string of bytes
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def excess(data: bytes) -> str | None:
    """What there is too much of in a PNG, JPEG, GIF or TIFF file, in words; None where the file is within bounds.

    Says nothing about whether the file is valid: the decoder does that.
    """
    if data.startswith(_PNG):
        return _png_excess(data)
    if data.startswith(_JPEG):
        return _jpeg_excess(data)
    if data.startswith(_GIF):
        return _gif_excess(data)
    if data.startswith(_BIG_TIFF):
        return "the places of BigTIFF, made for files beyond 4 GB"
    if byte_order := _TIFF.get(data[:4]):
        return _tiff_excess(data, byte_order)
    return None


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a WebP file says of itself; None for another file, or one that is cut."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":  # 24 bits each, less one
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        case b"VP8L":  # 14 bits each, less one, behind a byte that is always the same
            sides = int.from_bytes(data[21:25], "little")
            return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
        case b"VP8 ":  # 14 bits of two bytes each, behind the head of a frame
            width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
            return width & 0x3FFF, height & 0x3FFF
        case _:
            return None


def _png_excess(data: bytes) -> str | None:
    at, profiles = len(_PNG), 0
    for _ in range(MAX_CHUNKS):
        kind = data[at + 4 : at + 8]
        if at >= len(data) or kind == b"IEND":
            return None
        profiles += kind == b"iCCP"
        if profiles > 1:  # each may unfold to a megabyte
            return "more than one colour profile"
        at += int.from_bytes(data[at : at + 4]) + 12
    return f"more than {MAX_CHUNKS} chunks"


def _jpeg_excess(data: bytes) -> str | None:
    """Walk from marker to marker, as decoders do; of several images in a file (MPO) only the first counts."""
    at, scans, stray, in_scan = len(_JPEG), 0, 0, False
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if not in_scan:
            stray += (len(data) if found is None else found.start()) - at
            if stray > MAX_STRAY:
                return f"more than {MAX_STRAY} bytes between its segments"
        if found is None:
            return None
        marker, at = data[found.end() - 1], found.end()
        in_scan = marker == _START_OF_SCAN
        if marker == _END_OF_IMAGE:
            return None
        if marker in _ARITHMETIC:
            return "arithmetic coding, which browsers do not read either"
        if marker == _START_OF_SCAN:
            scans += max(1, int.from_bytes(data[at + 2 : at + 3]))
            if scans > MAX_SCANS:
                return f"more than {MAX_SCANS} scans"
        if marker not in _WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2])
    return f"more than {MAX_SEGMENTS} segments"


def _gif_excess(data: bytes) -> str | None:
    """Walk the blocks up to the first frame; what comes after it is never read."""
    if len(data) < 13:
        return None
    packed = data[10]
    at = 13 + (3 << ((packed & 7) + 1) if packed & 0x80 else 0)
    in_extension = False
    for _ in range(MAX_BLOCKS):
        if at >= len(data):
            return None
        if in_extension:
            in_extension, at = data[at] != 0, at + 1 + data[at]
        elif data[at] == 0x21:  # an extension: its kind, then blocks up to one of length 0
            in_extension, at = True, at + 2
        elif data[at] in (0x2C, 0x3B):  # a frame, or the end
            return None
        else:  # Pillow passes over stray bytes, one by one
            at += 1
    return f"more than {MAX_BLOCKS} blocks before its first frame"


def _tiff_excess(data: bytes, byte_order: Literal["little", "big"]) -> str | None:
    """Look at the tags of the first page."""
    page = int.from_bytes(data[4:8], byte_order)
    entries = int.from_bytes(data[page : page + 2], byte_order)
    for number in range(entries):
        entry = data[page + 2 + 12 * number : page + 14 + 12 * number]
        kind, count = int.from_bytes(entry[2:4], byte_order), int.from_bytes(entry[4:8], byte_order)
        if kind not in _TIFF_BYTES and count > MAX_VALUES:
            return f"more than {MAX_VALUES} values in a tag"
    return None
