"""Read the images of a request: multipart form, field `image`, once or several times."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ducat_serve.images import ImageError, decode, fit, to_array
from ducat_serve.spec import ModelSpec
from service.problems import Problem
from service.settings import Settings

FIELD = "image"


async def read_images(
    request: Request, spec: ModelSpec, settings: Settings, threads: Executor
) -> NDArray[np.uint8]:
    """Decode every uploaded image to the model's size, in ``threads``: so many at a time and no more.

    Returns uint8 [N, H, W, channels]. Raises Problem for anything that is not 1 to ``max_images`` images.
    """
    files = await _uploaded(request, settings)
    loop = asyncio.get_running_loop()
    arrays = []
    for number, data in enumerate(files):
        try:
            arrays.append(await loop.run_in_executor(threads, _decode, data, spec, settings.max_pixels))
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
    form = await _parse(request, settings.max_images)
    try:
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
    finally:
        await form.close()


class _Parser(MultiPartParser):
    """Knows whether the form's closing boundary came; without it Starlette drops the last part silently."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _parse(request: Request, max_images: int) -> FormData:
    try:
        async with contextlib.aclosing(request.stream()) as stream:
            parser = _Parser(request.headers, stream, max_files=max_images, max_fields=8)
            form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            message = f"At most {max_images} images per request."
            raise Problem(413, "too_many_images", message) from error
        raise Problem(400, "malformed_form", f"The form cannot be read: {error.message}") from error
    except ValueError as error:  # a charset that Python's codecs refuse to use
        raise Problem(400, "malformed_form", "The form cannot be read: its charset is unusable.") from error
    if not parser.ended:
        await form.close()
        raise Problem(400, "malformed_form", "The form is cut off: its closing boundary is missing.")
    return form


def _decode(data: bytes, spec: ModelSpec, max_pixels: int) -> NDArray[np.uint8]:
    return to_array(fit(decode(data, max_pixels), spec.image_size), spec.channels)
