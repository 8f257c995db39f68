"""Read the images of a request: multipart form, field `image`, once or several times."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ducat_serve.images import ImageError, decode, fit, to_array
from ducat_serve.spec import ModelSpec
from service.problems import Problem
from service.settings import Settings

FIELD = "image"


async def read_images(request: Request, spec: ModelSpec, settings: Settings) -> NDArray[np.uint8]:
    """Decode every uploaded image to the model's size, off the event loop.

    Returns uint8 [N, H, W, channels]. Raises Problem for anything that is not 1 to ``max_images`` images.
    """
    files = await _uploaded(request, settings)
    arrays = []
    for number, data in enumerate(files):
        try:
            arrays.append(await asyncio.to_thread(_decode, data, spec, settings.max_pixels))
        except ImageError as error:
            which = f"Image {number + 1}: " if len(files) > 1 else ""
            status = 413 if error.code == "image_too_large" else 400
            raise Problem(status, error.code, f"{which}{error}.") from error
    return np.stack(arrays)


async def _uploaded(request: Request, settings: Settings) -> list[bytes]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Problem(
            415,
            "unsupported_media_type",
            f"Send multipart/form-data with a file field '{FIELD}', not '{kind}'.",
        )
    try:
        async with request.form(max_files=settings.max_images, max_fields=8) as form:
            parts = form.getlist(FIELD)
            if not parts:
                raise Problem(400, "missing_image", f"There is no file in the field '{FIELD}'.")
            if any(isinstance(part, str) for part in parts):
                raise Problem(
                    400,
                    "not_a_file",
                    f"The field '{FIELD}' must be a file upload. URLs and text are never fetched.",
                )
            return [await part.read() for part in parts if isinstance(part, UploadFile)]
    except HTTPException as error:
        if "Too many files" in str(error.detail):
            message = f"At most {settings.max_images} images per request."
            raise Problem(413, "too_many_images", message) from error
        raise Problem(400, "malformed_form", f"The form cannot be read: {error.detail}") from error


def _decode(data: bytes, spec: ModelSpec, max_pixels: int) -> NDArray[np.uint8]:
    return to_array(fit(decode(data, max_pixels), spec.image_size), spec.channels)
