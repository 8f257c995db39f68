"""Decoding of untrusted image files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from ducat_serve.image_bounds import webp_size
from ducat_serve.images import FILE_FORMATS, ImageError, decode, fit, to_array

ORIENTATION = 0x0112
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)  # not square, every pixel different
# What a camera does to the upright image before it writes orientation 1..8 (EXIF 2.3, tag 0x0112).
TURNED_BY_CAMERA = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def text_bomb() -> PngInfo:
    """Metadata that is small in the file and large when it is read."""
    info = PngInfo()
    info.add_text("Comment", "x" * 2_000_000, zip=True)
    return info


def photo() -> Image.Image:
    return Image.fromarray(PHOTO)


def bomb() -> bytes:
    """A 1-bit grey PNG of 20,000 x 20,000 pixels in some 50 kB."""
    rows = zlib.compress(bytes(1 + 20_000 // 8) * 20_000, 9)
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})]
)
def test_every_format_decodes_to_rgb(format: str, options: dict[str, Any]) -> None:
    smooth = np.add.outer(np.arange(12) * 5, np.arange(20) * 5)[..., None].repeat(3, axis=2).astype(np.uint8)
    image = decode(encode(Image.fromarray(smooth), format, **options))
    assert image.mode == "RGB"
    tolerance = 4 if format == "JPEG" else 0
    assert np.abs(np.asarray(image).astype(int) - smooth).max() <= tolerance


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"Not an image.\n" * 20, id="text"),
        pytest.param(encode(photo(), "JPEG")[:-200], id="truncated JPEG"),
        pytest.param(encode(photo())[:-200], id="truncated PNG"),
        pytest.param(encode(photo())[:20], id="PNG cut in its header"),
        pytest.param(encode(photo(), pnginfo=text_bomb()), id="PNG with a text bomb"),
        pytest.param(encode(photo(), "GIF"), id="GIF"),
        pytest.param(encode(photo(), "TIFF"), id="TIFF"),
        pytest.param(
            encode(photo(), "WEBP", save_all=True, append_images=[Image.new("RGB", (20, 12))]),
            id="animated WebP",
        ),
        pytest.param(
            encode(photo(), save_all=True, append_images=[Image.new("RGB", (20, 12))]), id="animated PNG"
        ),
    ],
)
def test_what_is_not_one_whole_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code == "invalid_image"


def test_a_phone_photo_with_a_preview_behind_it_is_one_image() -> None:
    first = Image.new("RGB", (20, 12), (200, 30, 60))
    data = encode(first, "MPO", save_all=True, append_images=[Image.new("RGB", (10, 6))])
    assert np.abs(np.asarray(decode(data)).astype(int) - (200, 30, 60)).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_image(orientation: int, format: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(TURNED_BY_CAMERA[orientation](PHOTO)))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode(encode(stored, format, exif=exif, **options))
    np.testing.assert_array_equal(np.asarray(image), PHOTO)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'


def test_only_exif_turns_an_image_as_in_browsers() -> None:
    in_png = PngInfo()
    in_png.add_itxt("XML:com.adobe.xmp", XMP.decode())
    tiff = TiffImagePlugin.ImageFileDirectory_v2()
    tiff[700] = XMP
    for data in (
        encode(Image.fromarray(PHOTO), "PNG", pnginfo=in_png),
        encode(Image.fromarray(PHOTO), "WEBP", lossless=True, xmp=XMP),
        encode(Image.fromarray(PHOTO), "TIFF", tiffinfo=tiff),
    ):
        assert Image.open(io.BytesIO(data)).getexif().get(ORIENTATION) == 3, "Pillow itself would turn it"
        np.testing.assert_array_equal(np.asarray(decode(data, formats=FILE_FORMATS)), PHOTO)
    jpeg = encode(Image.fromarray(PHOTO), "JPEG", xmp=XMP)
    np.testing.assert_array_equal(decode(jpeg), decode(encode(Image.fromarray(PHOTO), "JPEG")))


def grey_tiff(pixels: NDArray[np.uint8] | NDArray[np.uint16], bits: int, photometric: int) -> bytes:
    """One strip of grey, uncompressed; pixels of 12 bits are packed."""
    height, width = pixels.shape
    packed = pixels.tobytes()
    if bits == 12:
        two = pixels.reshape(-1, 2).astype(int)
        packed = bytes(
            np.stack([two[:, 0] >> 4, (two[:, 0] & 15) << 4 | two[:, 1] >> 8, two[:, 1] & 255], axis=1)
            .astype(np.uint8)
            .ravel()
        )
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8 + 2 + 9 * 12 + 4)]
    tags += [(277, 1), (278, height), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed


@pytest.mark.parametrize(
    ("bits", "photometric", "words"),
    [(8, 1, ""), (8, 0, ""), (16, 1, ""), (16, 0, "0 is white"), (12, 1, "12-bit")],
)
def test_grey_of_a_tiff_is_what_it_means_or_refused(bits: int, photometric: int, words: str) -> None:
    grey = (np.arange(16 * 20) % 256).astype(np.uint8).reshape(16, 20)
    scaled = (grey.astype(int) * (2**bits - 1) // 255).astype(np.uint16 if bits > 8 else np.uint8)
    stored = scaled if photometric == 1 else (2**bits - 1 - scaled.astype(int)).astype(scaled.dtype)
    data = grey_tiff(stored, bits, photometric)
    if words:
        with pytest.raises(ImageError, match=words):
            decode(data, formats=FILE_FORMATS)
    else:
        found = np.asarray(decode(data, formats=FILE_FORMATS))
        np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))


ODD_TAGS = {
    "a width that is a float": struct.pack("<HHIf", 0x100, 11, 1, 16.0),
    "a resolution that is text": struct.pack("<HHI4s", 0x11A, 2, 4, b"abc"),
}


@pytest.mark.parametrize("tag", ODD_TAGS.values(), ids=ODD_TAGS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_odd_tags_beside_the_orientation_do_no_harm(orientation: int, tag: bytes) -> None:
    turned = struct.pack("<HHIHH", ORIENTATION, 3, 1, orientation, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tag + turned + bytes(4)
    image = decode(encode(Image.new("RGB", (20, 12)), "JPEG", exif=exif))
    assert image.size == ((20, 12) if orientation == 1 else (12, 20))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_exif_that_is_none_does_no_harm(format: str) -> None:
    image = decode(encode(Image.new("RGB", (20, 12)), format, exif=b"garbagegarbage"))
    assert image.size == (20, 12)


def test_palette_is_resolved() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 128, 0, 1, 2, 3])
    pixels = np.asarray(decode(encode(image))).tolist()
    assert pixels == [[[255, 0, 0], [0, 128, 0]], [[1, 2, 3], [0, 128, 0]]]


def test_transparent_palette_entry_is_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 128, 0])
    assert np.asarray(decode(encode(image, transparency=0))).tolist() == [[[255, 255, 255], [0, 128, 0]]]


def test_alpha_is_laid_over_white() -> None:
    rgba = np.zeros((1, 256, 4), dtype=np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = np.arange(256)
    alpha = np.arange(256)
    expected = np.stack([(c * alpha + 255 * (255 - alpha)) / 255 for c in (200, 0, 0)], axis=-1)
    pixels = np.asarray(decode(encode(Image.fromarray(rgba))))[0]
    np.testing.assert_array_equal(pixels, np.floor(expected + 0.5).astype(np.uint8))


def test_grey_with_alpha_is_laid_over_white() -> None:
    grey_alpha = np.array([[[10, 0], [10, 255], [0, 51]]], dtype=np.uint8)
    pixels = np.asarray(decode(encode(Image.fromarray(grey_alpha, "LA"))))
    assert pixels.tolist() == [[[255] * 3, [10] * 3, [204] * 3]]


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB"])
def test_transparent_colour_key_is_white(mode: str) -> None:
    black, white = ((0, 0, 0), (255, 255, 255)) if mode == "RGB" else (0, 65535 if mode == "I;16" else 255)
    image = Image.new(mode, (2, 1), white)
    image.putpixel((1, 0), black)
    assert np.asarray(decode(encode(image)))[0, 1].tolist() == [0, 0, 0]
    assert np.asarray(decode(encode(image, transparency=black)))[0, 1].tolist() == [255, 255, 255]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key", "expected"),
    [
        pytest.param(2, 0, b"\x60", (1,), [255, 170], id="grey of 2 bits, 1 and 2"),
        pytest.param(4, 0, b"\x56", (5,), [255, 102], id="grey of 4 bits, 5 and 6"),
        pytest.param(8, 0, b"\x50\x51", (0x50,), [255, 0x51], id="grey of 8 bits"),
        pytest.param(8, 0, b"\x50\x51", (0x150,), [0x50, 0x51], id="a grey that there is not"),
        pytest.param(
            16, 2, b"\x12\x34" * 3 + b"\x99\x99" * 3, (0x1234,) * 3, [255, 0x99], id="RGB of 16 bits"
        ),
        pytest.param(16, 2, b"\x12\x34" * 3 + b"\x99\x99" * 3, (0x12,) * 3, [0x12, 0x99], id="another RGB"),
    ],
)
def test_the_transparent_colour_of_a_png_has_its_own_number_of_bits(
    depth: int, colour: int, row: bytes, key: tuple[int, ...], expected: list[int]
) -> None:
    header = struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
    parts = {
        b"IHDR": header,
        b"tRNS": struct.pack(f">{len(key)}H", *key),
        b"IDAT": zlib.compress(b"\0" + row),
        b"IEND": b"",
    }
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in parts.items())
    assert np.asarray(decode(data))[0].tolist() == [[value] * 3 for value in expected]


def test_16_bit_grey_is_scaled_exactly() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = np.asarray(decode(encode(Image.fromarray(values))))
    expected = np.rint(values.astype(np.float64) * 255 / 65535).astype(np.uint8)
    np.testing.assert_array_equal(pixels, expected[..., None].repeat(3, axis=2))


def test_cmyk_becomes_rgb() -> None:
    image = decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() <= 4


def test_one_pixel() -> None:
    assert np.asarray(decode(encode(Image.new("RGB", (1, 1), (1, 2, 3))))).tolist() == [[[1, 2, 3]]]


def never_load(*_: object) -> None:
    raise AssertionError("pixels were decoded")


def test_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bomb()
    assert len(data) < 100_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never_load)
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code == "image_too_large"


def test_own_limit_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo())
    assert decode(data, max_pixels=240).size == (20, 12)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never_load)
    with pytest.raises(ImageError, match=r"20x12 pixels; the limit is 239") as caught:
        decode(data, max_pixels=239)
    assert caught.value.code == "image_too_large"


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"VP8X" + bytes(8) + b"\xff\x3f\0" * 2, id="extended"),
        pytest.param(
            b"VP8L" + bytes(4) + b"\x2f" + (0x3FFF << 14 | 0x3FFF).to_bytes(4, "little"), id="lossless"
        ),
        pytest.param(b"VP8 " + bytes(7) + b"\x9d\x01\x2a" + b"\xff\x3f" * 2, id="lossy"),
    ],
)
def test_a_webp_that_pillow_cannot_even_open_is_too_large(head: bytes) -> None:
    data = b"RIFF" + bytes(4) + b"WEBP" + head + bytes(99)
    with pytest.raises(ImageError, match=r"1638\dx1638\d pixels; the limit is 40000000") as caught:
        decode(data)
    assert caught.value.code == "image_too_large"


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 50}, {"quality": 50, "exif": b"Exif\0\0"}], ids=str
)
def test_the_size_of_a_webp_is_read_from_its_head(options: dict[str, Any]) -> None:
    data = encode(Image.new("RGB", (301, 17)), "WEBP", **options)
    assert webp_size(data) == (301, 17)
    assert webp_size(data[:29]) is None
    assert webp_size(encode(photo())) is None


def test_fit_leaves_the_right_size_alone() -> None:
    image = photo()
    assert fit(image, (12, 20)) is image


@pytest.mark.parametrize("size", [(40, 40), (8, 8), (12, 12), (30, 7), (1, 1)])
def test_fit_gives_height_and_width(size: tuple[int, int]) -> None:
    assert to_array(fit(photo(), size)).shape == (*size, 3)


def test_fit_crops_the_centre() -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 255
    assert to_array(fit(Image.fromarray(wide), (8, 8))).min() == 255


def test_one_channel_is_luma() -> None:
    array = to_array(Image.new("RGB", (3, 2), (255, 0, 0)), channels=1)
    assert array.shape == (2, 3, 1)
    assert array.max() == array.min() == 76  # 0.299 * 255


@settings(max_examples=150, deadline=None)
@given(
    format=st.sampled_from(["PNG", "JPEG"]),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12
    ),
    keep=st.floats(0.2, 1),
)
def test_damaged_files_decode_or_raise_image_error(
    format: str, changes: list[tuple[float, int]], keep: float
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = bytearray(encode(photo(), format, exif=exif))
    for position, value in changes:
        data[int(position * len(data))] = value
    try:
        image = decode(bytes(data[: round(keep * len(data))]), max_pixels=1_000_000)
    except ImageError:
        return
    assert image.mode == "RGB"
