"""Decode untrusted image files to uint8 arrays. One decoder for training, `predict` and the service.

Policy: PNG, JPEG, WebP and BMP (not its compressed kinds); one frame; EXIF orientation applied; palettes resolved;
transparency laid over white, as a person would see it; 16-bit grey scaled to 8 bits; CMYK and grey converted to RGB. To
the model's size: resize the shorter side (bilinear, antialiased), then crop the centre.

Files on the user's own machine (data sets, `ducat predict`) may also be GIF, of which the first frame counts, and TIFF,
of which the first page does. The server takes neither: fewer decoders face what strangers send.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ducat_serve.image_bounds import excess, webp_size

_STRIP = 256  # rows
_Turn = Image.Transpose
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # between two greys of so many bits, in 8 bits
# What turns an image of this EXIF orientation upright; 1 is upright.
_TURNS = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
FILE_FORMATS = (*FORMATS, "GIF", "TIFF")
# How the names of files in `FILE_FORMATS` end; in a folder, other files are passed over.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_FIRST_FRAME = ("MPO", "GIF", "TIFF")  # an MPO is a JPEG photo with a preview or depth map after it
# Pillow hands TIFFs to libtiff; the compressions that photo and scanner software writes, without decoders of their own.
_TIFF_COMPRESSIONS = {"raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"}
_TILE_SIDES = (322, 323)  # TIFF tags TileWidth and TileLength
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0
MAX_PIXELS = 40_000_000
# Pillow's own limit warns through a filter that all threads share; ours is checked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
RESIZE_POLICY = "shorter side resized (bilinear, antialiased), then centre crop; EXIF orientation applied"


class ImageError(ValueError):
    """An image that cannot be decoded; ``code`` is one of invalid_image, image_too_large, image_too_slow."""

    def __init__(self, message: str, code: str = "invalid_image") -> None:
        super().__init__(message)
        self.code = code


_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")


def begins_as_image(start: bytes) -> bool:
    """Whether the first bytes of a file, 12 or more, are those of a JPEG, PNG, GIF, BMP or WebP."""
    return start.startswith(_BEGINNINGS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def decode(data: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Decode one image file to an 8-bit RGB image, following the policy above.

    Args:
        formats: which may be tried; `FILE_FORMATS` for files of the user's own.

    Raises:
        ImageError: empty, truncated, animated, too large, of more parts than any encoder writes, or not one of
            ``formats``.
    """
    if not data:
        raise ImageError("the file is empty")
    if too_much := excess(data):
        raise ImageError(f"the file has {too_much}")
    try:
        if size := webp_size(data):  # Pillow takes memory for all pixels of a WebP when it is opened
            _require_few_pixels(size, max_pixels)
        image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
        _require_few_pixels(image.size, max_pixels)
        if image.format not in _FIRST_FRAME and getattr(image, "is_animated", False):
            raise ImageError("the image is animated; send a single frame")
        if image.format == "TIFF":
            _check_tiff(image, max_pixels)
        if any(tile.codec_name == "bmp_rle" for tile in getattr(image, "tile", [])):
            raise ImageError("the BMP is compressed (RLE); send it uncompressed, or as PNG")
        if image.format == "PNG":
            _scale_colour_key(image)
        image.info.pop("xmp", None)  # or Pillow turns a TIFF by it while it loads
        image.load()
        return to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image in one of the formats {', '.join(formats)}") from error
    except Exception as error:  # Pillow's plugins raise many types on hostile input
        raise ImageError(f"the image does not decode ({type(error).__name__})") from error


def _require_few_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        message = f"the image has {width}x{height} pixels; the limit is {max_pixels}"
        raise ImageError(message, "image_too_large")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image that is already decoded, as 8-bit RGB: turned upright by its EXIF orientation, laid over white."""
    return _eight_bit_rgb(_upright(image))


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize and centre-crop to ``size`` = (H, W); an image of that size is returned unchanged."""
    height, width = size
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)


def to_array(image: Image.Image, channels: int = 3) -> NDArray[np.uint8]:
    """An RGB image as uint8 [H, W, channels]; one channel is ITU-R 601 luma."""
    if channels == 1:
        return np.asarray(image.convert("L"), dtype=np.uint8)[..., None]
    return np.asarray(image, dtype=np.uint8)


def _scale_colour_key(image: Image.Image) -> None:
    """Pillow scales the pixels of a PNG to 8 bits, but not the one colour that is transparent in it (tRNS).

    Of RGB in 16 bits it keeps the upper ones only, so colours that differ in the lower ones alone count as the same.
    """
    key: Any = image.info.get("transparency")
    tiles: Any = getattr(image, "tile", [])
    if image.mode not in ("L", "RGB") or key is None or not tiles:
        return
    depth = tiles[0].args  # as Pillow's decoder calls it
    if image.mode == "L":
        key = key * _GREY_STEPS.get(depth, 1)
    elif depth == "RGB;16B":
        key = tuple(value >> 8 for value in key)
    if np.max(key) > 255:  # no pixel has that colour
        del image.info["transparency"]
    else:
        image.info["transparency"] = key


def _check_tiff(image: Image.Image, max_pixels: int) -> None:
    """Raise ImageError for a TIFF whose decoder could cost more than its pixels, or with pixels of no known range."""
    compression = image.info.get("compression", "raw")
    if compression not in _TIFF_COMPRESSIONS:
        raise ImageError(f"the TIFF is compressed by {compression}; save it with LZW, Deflate, or as PNG")
    tags: Any = getattr(image, "tag_v2", {})
    width, height = (int(tags.get(side, 0)) for side in _TILE_SIDES)
    if width * height > max_pixels:  # libtiff takes memory for a whole tile, however small the image is
        raise ImageError(f"the TIFF has tiles of {width}x{height} pixels; the limit is {max_pixels}")
    if image.mode in ("I", "F"):
        raise ImageError("the TIFF has 32-bit pixels, whose range is not known; save it with 8 or 16 bits")
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    if bits not in (1, 2, 4, 8, 16):  # Pillow gives 12 bits as they are: nearly black
        raise ImageError(f"the TIFF has {bits}-bit pixels; save it with 8 or 16 bits")
    if bits > 8 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow gives it as a negative
        raise ImageError(
            f"in the TIFF 0 is white and pixels have {bits} bits; save it with 8 bits, or as PNG"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Not by `ImageOps.exif_transpose`, which writes all of the EXIF anew and fails on tags that are odd.

    Nor by `Image.getexif`, which takes the orientation of an XMP packet where EXIF has none. Browsers do not, so the
    model would see something else than whoever looks at the image.
    """
    image.load()
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        orientation: Any = exif.get(ExifTags.Base.Orientation)
    except Exception:  # of a PNG or WebP whose EXIF is none, which says as much as no EXIF
        return image
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _eight_bit_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit grey instead of scaling it.
        grey = np.asarray(image)
        transparent = image.info.get("transparency")
        image = Image.fromarray(_eight_bits(grey))
        if transparent is not None:
            image.putalpha(Image.fromarray((grey != transparent).view(np.uint8) * np.uint8(255)))
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """What a person sees of transparent pixels; a strip at a time, for the same reason as in `_eight_bits`."""
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP):
        box = (0, top, image.width, min(top + _STRIP, image.height))
        strip = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        result.paste(Image.alpha_composite(white, strip).convert("RGB"), box)
    return result


def _eight_bits(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit grey, scaled; a strip at a time, since an image of 25 megapixels would take hundreds of megabytes more."""
    scaled = np.empty(grey.shape, np.uint8)
    for start in range(0, len(grey), _STRIP):
        strip = grey[start : start + _STRIP].astype(np.int64).clip(0, 65535)
        scaled[start : start + _STRIP] = (strip + 128) // 257
    return scaled
