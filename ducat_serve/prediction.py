"""What a model says of one image, and the kinds of images that it may be asked about."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ducat_serve.errors import DataError, UsageError
from ducat_serve.images import FILE_FORMATS, ImageError, decode, fit, to_array, to_rgb
from ducat_serve.regular_file import read_regular_file
from ducat_serve.spec import ModelSpec, Tower

if TYPE_CHECKING:
    from ducat_serve.predictor import Predictions

# A path, the bytes of a file, an opened image, or pixels: uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class Choice:
    """A class that the model considers; ``confidence`` is its softmax probability, in [0, 1]."""

    label: str
    class_id: int
    confidence: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Examples:
        >>> prediction.label, prediction.confidence
        ('cat', 0.91)
        >>> [choice.label for choice in prediction.top(3)]
        ['cat', 'dog', 'fox']
    """

    label: str
    class_id: int
    confidence: float  # softmax probability of the label, in [0, 1]
    dummy_mass: float  # in [0, 1]; 0 for a model without dummies
    labels: tuple[str, ...] = field(repr=False)  # of all C classes
    probabilities: NDArray[np.float32] = field(repr=False, compare=False)  # [C], summing to 1
    answered_by: Tower | None = None  # of a two-tower model, whose answer it is

    def top(self, k: int = 5) -> list[Choice]:
        """The ``k`` most probable classes, best first; all of them where there are fewer. Raises UsageError below 1."""
        if k < 1:
            raise UsageError(f"k: {k} is not a whole number from 1 on.", "prediction.top(1)")
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [Choice(self.labels[i], int(i), float(self.probabilities[i])) for i in order]


def split_up(predictions: Predictions, spec: ModelSpec) -> list[Prediction]:
    """The predictions of N images as N objects."""
    names = spec.labels
    return [
        Prediction(names[label], int(label), float(row[label]), float(mass), names, row, spec.tower_of(mass))
        for label, mass, row in zip(
            predictions.label, predictions.dummy_mass, predictions.probabilities, strict=True
        )
    ]


def read_image(image: ImageLike, spec: ModelSpec, name: str = "the image") -> NDArray[np.uint8]:
    """An image as the model takes it, uint8 [H, W, channels]: resized on its shorter side and cropped to the centre.

    Args:
        name: what errors call bytes; a path is its own name.

    Raises:
        DataError: a file that cannot be read or decoded; its path is named.
        UsageError: something that is no image, or pixels of another shape or dtype than uint8.
    """
    return to_array(fit(_as_rgb(image, name), spec.image_size), spec.channels)


def _as_rgb(image: ImageLike, name: str) -> Image.Image:
    if isinstance(image, Image.Image):
        if image.mode in ("I", "F"):
            raise UsageError(
                f"{name} is a PIL image of mode {image.mode}, whose range is not known.",
                "give one of 8 bits: Image.fromarray(pixels), with pixels of uint8",
            )
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        return to_rgb(_from_pixels(image))
    if isinstance(image, bytes):
        return _decode(image, name)
    if isinstance(image, str | Path):
        return _decode(read_regular_file(Path(image), str(image), "give an image file"), str(image))
    raise no_image(image)


def no_image(given: object) -> UsageError:
    """The error for what is no image of any kind."""
    kind = type(given)
    if kind.__module__.partition(".")[0] == "torch":
        return UsageError(
            f"{kind.__name__} of torch is no image.", "give .numpy() of it: uint8 [H, W] or [H, W, channels]"
        )
    return UsageError(
        f"{kind.__name__} is no image.",
        "give a path, bytes, a PIL image or an array of uint8, or a list of such",
    )


def _decode(data: bytes, name: str) -> Image.Image:
    try:
        return decode(data, formats=FILE_FORMATS)
    except ImageError as error:
        raise DataError(f"{name}: {error}.", "give PNG, JPEG, WebP, BMP, GIF or TIFF files") from error


def _from_pixels(pixels: NDArray[Any]) -> Image.Image:
    has_colours = pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or has_colours) or 0 in pixels.shape:
        raise UsageError(
            f"An array of pixels is uint8 [H, W] or [H, W, 1, 3 or 4], not {pixels.dtype} {list(pixels.shape)}.",
            _as_pixels(pixels),
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _as_pixels(array: NDArray[Any]) -> str:
    """What to do with an array that is no image as it is."""
    if np.issubdtype(array.dtype, np.floating):
        return "scale floats in [0, 1] by 255 and call .astype('uint8')"
    if array.dtype != np.uint8:
        return "call .astype('uint8'), for values from 0 to 255"
    if array.ndim == 4:
        return "give the images of a batch as a list: list(array)"
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return "call .transpose(1, 2, 0), which puts the channels last"
    return "give one image, with its channels last"
