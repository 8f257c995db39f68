"""Files whose structure, not whose pixels, would cost minutes of CPU."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ducat_serve.image_bounds import (
    MAX_BLOCKS,
    MAX_CHUNKS,
    MAX_SCANS,
    MAX_SEGMENTS,
    MAX_STRAY,
    MAX_VALUES,
    excess,
)
from ducat_serve.images import FILE_FORMATS, ImageError, decode

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))


def encode(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    NOISE.save(buffer, format, **options)
    return buffer.getvalue()


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan, of one component, is repeated until there are ``count`` components in all."""
    data = encode("JPEG", progressive=True)
    components = [scan[2] for scan in data.split(b"\xff\xda")[1:]]
    assert components[0] == 3
    assert components[-1] == 1
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - sum(components)) + data[-2:]


def with_scans_of_all_components(count: int) -> bytes:
    """A progressive JPEG with its first scan, of three components, ``count`` times more."""
    data = encode("JPEG", progressive=True)
    first, second = data.index(b"\xff\xda"), data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    return data[:first] + data[first:second] * count + data[first:]


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
        pytest.param(with_scans_of_all_components(MAX_SCANS // 3), "scans", id="scans of all components"),
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


@pytest.mark.parametrize("frame", [0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_arithmetic_coding_is_refused_before_any_decoder(frame: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty scan of it takes as long as a full one: a kilobyte of them took 11 seconds."""
    monkeypatch.setattr("PIL.Image.open", never_open)
    with pytest.raises(ImageError, match="arithmetic coding"):
        decode(encode("JPEG", progressive=True).replace(b"\xff\xc2", bytes([0xFF, frame]), 1))


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


def with_blocks(count: int) -> bytes:
    """A GIF with ``count`` blocks of a comment before its frame."""
    file = encode("GIF")
    frame = 13 + (3 << ((file[10] & 7) + 1))  # behind the header and its palette
    return file[:frame] + b"\x21\xfe" + b"\x01x" * (count - 2) + b"\0" + file[frame:]


def tiff_with(tag: int, count: int) -> bytes:
    """A TIFF whose ``tag`` says that it has ``count`` values of 4 bytes."""
    file = bytearray(encode("TIFF"))
    page = int.from_bytes(file[4:8], "little")
    for entry in range(page + 2, page + 2 + 12 * file[page], 12):
        if int.from_bytes(file[entry : entry + 2], "little") == tag:
            file[entry + 2 : entry + 8] = struct.pack("<HI", 4, count)
    return bytes(file)


def test_the_blocks_of_a_gif_are_bounded() -> None:
    assert decode(with_blocks(MAX_BLOCKS - 1), formats=FILE_FORMATS).size == NOISE.size
    with pytest.raises(ImageError, match="more than 8192 blocks"):
        decode(with_blocks(MAX_BLOCKS + 1), formats=FILE_FORMATS)


def test_the_values_of_a_tiff_tag_are_bounded() -> None:
    assert excess(encode("TIFF")) is None
    strip_offsets = 273
    with pytest.raises(ImageError, match="more than 65536 values"):
        decode(tiff_with(strip_offsets, MAX_VALUES + 1), formats=FILE_FORMATS)


def test_a_big_tiff_is_refused() -> None:
    with pytest.raises(ImageError, match="BigTIFF"):
        decode(encode("TIFF", big_tiff=True), formats=FILE_FORMATS)


def test_a_tiff_with_a_decoder_inside_it_is_refused() -> None:
    with pytest.raises(ImageError, match="compressed by jpeg"):
        decode(encode("TIFF", compression="jpeg"), formats=FILE_FORMATS)


def test_a_tiff_with_tiles_beyond_any_image_is_refused() -> None:
    lzw, side, pixels_at, length = 5, 30_000, 8, 8
    tags = {
        256: 8,
        257: 8,
        258: 8,
        259: lzw,
        262: 1,
        277: 1,
        322: side,
        323: side,
        324: pixels_at,
        325: length,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = (
        b"II*\0" + struct.pack("<I", 16) + bytes(length) + struct.pack("<H", len(tags)) + entries + bytes(4)
    )
    with pytest.raises(ImageError, match="tiles of 30000x30000 pixels"):
        decode(file, formats=FILE_FORMATS)


@pytest.mark.parametrize("format", ["GIF", "TIFF"])
def test_the_server_takes_neither(format: str) -> None:
    with pytest.raises(ImageError, match="not an image in one of the formats PNG, JPEG, WEBP, BMP"):
        decode(encode(format))


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate"])
def test_usual_tiffs_decode_exactly(compression: str) -> None:
    image = decode(encode("TIFF", compression=compression), formats=FILE_FORMATS)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(NOISE))


def test_the_first_frame_and_the_first_page_count() -> None:
    for format in ("GIF", "TIFF"):
        black = Image.new("RGB", NOISE.size)
        file = io.BytesIO()
        black.save(file, format, save_all=True, append_images=[Image.new("RGB", NOISE.size, "white")])
        assert np.asarray(decode(file.getvalue(), formats=FILE_FORMATS)).max() == 0


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_tiff_of_32_bits_is_refused(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (4, 4), 7).save(file, "TIFF")
    with pytest.raises(ImageError, match="32-bit pixels"):
        decode(file.getvalue(), formats=FILE_FORMATS)
