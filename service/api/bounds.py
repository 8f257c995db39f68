"""How many images a request may hold, and of what shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ducat_serve.spec import ModelSpec
from service.errors import APIError


def too_many_images(max_images: int) -> APIError:
    """The error for a request with more images than one may hold."""
    return APIError(413, "too_many_images", f"At most {max_images} images per request.")


def require_shape(shape: Iterable[Any], spec: ModelSpec, max_images: int, message: str) -> None:
    """Raise APIError unless ``shape`` is [N, H, W, channels] of the model, N from 1 to ``max_images``.

    ``message``: the start of what the client is told of another shape.
    """
    sizes = list(shape)
    expected = [*spec.image_size, spec.channels]
    # Not only equal to integers: both .npy and JSON may say true, which equals 1.
    if not all(type(size) is int and size > 0 for size in sizes) or sizes[1:] != expected:
        raise APIError(400, "invalid_shape", f"{message} [N, {', '.join(map(str, expected))}].")
    if sizes[0] > max_images:
        raise too_many_images(max_images)
