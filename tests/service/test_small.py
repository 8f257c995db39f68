"""Which images are decoded on the event loop: none whose cost is not bounded before it is decoded."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from service.api.small import MAX_BYTES, MAX_PIXELS, small_images
from tests.support.http_client import DIGITS, GOOD, bomb, encode


def png(size: int, **options: object) -> bytes:
    return encode(np.zeros((size, size, 3), np.uint8), **options)


def empty(kind: bytes) -> bytes:
    """A chunk without content."""
    return bytes(4) + kind + zlib.crc32(kind).to_bytes(4)


def text(compressed: bool) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 100_000, zip=compressed)
    return encode(DIGITS[0], pnginfo=info)


def test_small_png_files_count_until_their_pixels_are_used_up() -> None:
    assert small_images([GOOD]) == 1
    assert small_images([png(64)]) == 1
    assert small_images([png(65)]) == 0
    assert small_images([png(32)] * 9) == MAX_PIXELS // 32**2
    assert small_images([GOOD] * 9) == MAX_PIXELS // 32**2, "the smallest have a cost, too"
    assert small_images([GOOD, bomb(), GOOD]) == 1
    assert small_images([]) == 0


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(GOOD[:20], id="cut in its header"),
        pytest.param(bomb(), id="bomb"),
        pytest.param(GOOD + bytes(MAX_BYTES), id="many bytes"),
        pytest.param(text(compressed=True), id="a compressed text"),
        pytest.param(text(compressed=False), id="a long text"),
        pytest.param(encode(DIGITS[0], icc_profile=bytes(100)), id="a profile"),
        pytest.param(encode(DIGITS[0], exif=bytes(100)), id="EXIF"),
        pytest.param(GOOD[:33] + bomb()[8:], id="a second, larger header"),
        pytest.param(GOOD[:33] + empty(b"IDAT") * 16 + GOOD[33:], id="many chunks"),
        pytest.param(GOOD[:33] + b"\xff\xff\xff\xffIDAT" + GOOD[33:], id="a chunk beyond the end"),
        pytest.param(encode(DIGITS[0], "JPEG"), id="JPEG"),
        pytest.param(encode(Image.fromarray(DIGITS[0]), "WEBP"), id="WebP"),
    ],
)
def test_everything_else_is_left_to_a_thread(data: bytes) -> None:
    assert small_images([data]) == 0
