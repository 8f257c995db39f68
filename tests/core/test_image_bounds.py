"""Files whose structure, not whose pixels, would cost minutes of CPU."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ducat_serve.image_bounds import MAX_CHUNKS, MAX_SCANS, MAX_SEGMENTS, MAX_STRAY, excess
from ducat_serve.images import ImageError, decode

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))


def encode(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    NOISE.save(buffer, format, **options)
    return buffer.getvalue()


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are ``count``."""
    data = encode("JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


def with_segments(count: int) -> bytes:
    """A JPEG with ``count`` empty APP1 segments before all others."""
    data = encode("JPEG")
    return data[:2] + b"\xff\xe1\x00\x02" * count + data[2:]


def with_chunks(count: int) -> bytes:
    """A PNG with ``count`` empty chunks behind its header, of a kind that decoders skip."""
    data = encode("PNG")
    empty = struct.pack(">I", 0) + b"duCt" + struct.pack(">I", zlib.crc32(b"duCt"))
    return data[:33] + empty * count + data[33:]


def with_stray(stray: bytes) -> bytes:
    """A JPEG with bytes between its first two segments, which Pillow reads one by one."""
    data = encode("JPEG")
    end = 4 + int.from_bytes(data[4:6])
    return data[:end] + stray + data[end:]


def with_profiles(count: int) -> bytes:
    data = encode("PNG")
    body = b"iCCP" + b"a\0\0" + zlib.compress(bytes(1000))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk * count + data[33:]


def run_length_encoded_bmp() -> bytes:
    """Eight black pixels, as BMP's RLE8."""
    pixels = b"\x08\x00\x00\x01"
    header = struct.pack("<IiiHHIIiiII", 40, 8, 1, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    start = 14 + 40 + 1024
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + bytes(1024) + pixels


def never_open(*_: object, **__: object) -> None:
    raise AssertionError("a decoder saw the file")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        pytest.param(with_scans(MAX_SCANS + 1), "scans", id="scans"),
        pytest.param(with_segments(MAX_SEGMENTS + 1), "segments", id="segments"),
        pytest.param(with_chunks(MAX_CHUNKS + 1), "chunks", id="chunks"),
        pytest.param(with_stray(b"\xff" * (MAX_STRAY + 1)), "bytes between", id="fill bytes"),
        pytest.param(with_stray(b"\xff\xd0" * MAX_STRAY), "bytes between", id="restart markers"),
        pytest.param(with_stray(b"\xff\x00" * MAX_STRAY), "bytes between", id="stuffed bytes"),
        pytest.param(b"\xff\xd8" + bytes(MAX_STRAY + 1), "bytes between", id="no segment at all"),
    ],
)
def test_too_many_parts_are_refused_before_any_decoder(
    data: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.Image.open", never_open)
    with pytest.raises(ImageError, match=rf"more than \d+ {what}") as refused:
        decode(data)
    assert refused.value.code == "invalid_image"


@pytest.mark.parametrize(
    "data", [with_scans(MAX_SCANS), with_segments(MAX_SEGMENTS - 64), with_chunks(MAX_CHUNKS - 64)]
)
def test_as_many_as_allowed_decode(data: bytes) -> None:
    assert decode(data).size == NOISE.size


@pytest.mark.parametrize("end", [b"\x00", b"\xd0"])
def test_looking_for_a_marker_takes_one_pass(end: bytes) -> None:
    """By an expression that tried every run of FF from each of its bytes this would take hours."""
    found = excess(b"\xff\xd8" + b"\xff" * 8_000_000 + end)
    assert found is not None
    assert "between its segments" in found


def test_more_than_one_colour_profile_is_refused() -> None:
    assert excess(with_profiles(1)) is None
    assert excess(with_profiles(2)) == "more than one colour profile"


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 100}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_blocks": 1}),
        ("JPEG", {"icc_profile": bytes(300_000), "comment": b"c" * 60_000}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
    ],
)
def test_what_encoders_write_is_within_bounds(format: str, options: dict[str, Any]) -> None:
    assert excess(encode(format, **options)) is None


def test_restart_markers_and_stuffed_bytes_are_no_segments() -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (512, 512, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "JPEG", quality=100, restart_marker_blocks=1)
    data = buffer.getvalue()
    assert data.count(b"\xff") > MAX_SEGMENTS
    assert excess(data) is None


def test_scans_behind_the_end_of_the_first_image_do_not_count() -> None:
    """Phones put a preview or a depth map behind the photo; decoders stop at the end of the photo."""
    assert excess(encode("JPEG") + with_scans(MAX_SCANS + 1)) is None


def test_run_length_encoded_bmp_is_refused() -> None:
    """Pillow decodes it in Python, at a hundred nanoseconds for each pixel."""
    with pytest.raises(ImageError, match="compressed"):
        decode(run_length_encoded_bmp())
