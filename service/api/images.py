"""The images of a request, whichever way they were sent.

| Content-Type                            | body                                                                     |
|-----------------------------------------|--------------------------------------------------------------------------|
| multipart/form-data                     | image files in the field `image`, once or several times                  |
| image/*, application/octet-stream       | one image file                                                           |
| application/json                        | {"images": ["base64 of an image file", ...]}                             |
| application/x-npy                       | a .npy file: uint8 [N, H, W, channels] of exactly the model's size       |

Image files are resized to the model's size; arrays never are.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import re
from math import prod

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from ducat_serve.spec import ModelSpec
from service.api.admission import Admission
from service.api.bounds import require_shape, too_many_images
from service.api.forms import FIELD, uploaded_files
from service.api.query import EXAMPLES, misplaced
from service.errors import APIError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
NPY, FORM, JSON = "application/x-npy", "multipart/form-data", "application/json"
_KINDS = (FORM, JSON, "application/octet-stream")  # of bodies that hold image files, besides image/*
_JSON = 'Send {"images": ["base64 of an image file", ...]}.'
_ONLY_IMAGES = "The JSON has one key, 'images'."
_NO_BASE64 = (
    "An image is not base64: of the alphabet with + and /, padded with =, without line breaks and without a prefix "
    "such as 'data:image/png;base64,'. URLs are never fetched."
)
_URL = re.compile(rb'"[A-Za-z][A-Za-z0-9+.-]{0,20}:')  # where a text begins as one; a key ends in a quote
_MAX_JSON_PARTS = 16  # objects, lists and values, besides the images
_MAX_NPY_HEADER = 1000  # bytes; NumPy parses the header as a Python literal


async def read_images(request: Request, admission: Admission) -> NDArray[np.uint8]:
    """Decode every image to the size of the admission's model; it is told how many there are before any is decoded.

    Returns uint8 [N, H, W, channels]. Raises APIError for anything that is not 1 to ``max_images`` images, and as
    `Admission.take` does.
    """
    spec, settings = admission.loaded.predictor.spec, admission.control.models.settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == NPY:
        images = read_npy(await admission.read_body(), spec, settings.max_images)
        admission.take(len(images))
        await admission.identify(images)
        return images
    if kind not in _KINDS and not kind.startswith("image/"):
        raise APIError(
            415,
            "unsupported_media_type",
            f"Send multipart/form-data with a file field '{FIELD}', an image file (image/*), application/json with "
            f"base64, or application/x-npy, not '{kind}'.",
        )
    admission.require_decoders(1)  # before the body is read
    files = await _image_files(request, admission, kind)
    admission.require_decoders(len(files))
    admission.take(len(files))
    return await admission.decode(files)


async def _image_files(request: Request, admission: Admission, kind: str) -> list[bytes]:
    """The image files in a request's body, which is let go: while they wait to be decoded, memory holds them once."""
    control = admission.control
    max_images = control.models.settings.max_images
    body = await admission.read_body()
    if kind == FORM:
        return uploaded_files(body, request.headers["content-type"], max_images)
    if kind == JSON:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(control.documents, _from_json, body, max_images)
    return [body]


def read_npy(body: bytes, spec: ModelSpec, max_images: int) -> NDArray[np.uint8]:
    """A .npy file of images, read without pickle and without trusting its header. Raises APIError."""
    file = io.BytesIO(body)
    try:
        read_header = _HEADERS[np.lib.format.read_magic(file)]
        shape, fortran, dtype = read_header(file, max_header_size=_MAX_NPY_HEADER)
    except Exception as error:  # NumPy's header parser raises many types on hostile input
        raise APIError(400, "invalid_npy", "The body is not a .npy file of version 1 or 2.") from error
    message = "Arrays are uint8 in C order and are not resized:"
    require_shape(() if dtype != np.uint8 or fortran else shape, spec, max_images, message)
    if len(body) - file.tell() != prod(shape):
        raise APIError(400, "invalid_npy", "The .npy file is longer or shorter than its header says.")
    return np.frombuffer(body, dtype=np.uint8, offset=file.tell()).reshape(shape)


def _from_json(body: bytes, max_images: int) -> list[bytes]:
    # An object with one list of text. Millions of small things in it would take gigabytes, and hold up every thread
    # while they are parsed; what is left is parsed as fast as it is copied.
    parts = sum(body.count(sign) for sign in (b"{", b"[", b",", b":"))
    if parts > _MAX_JSON_PARTS + max_images:
        if _URL.search(body):  # the signs of a few URLs are as many as those of many images
            raise APIError(400, "invalid_base64", _NO_BASE64)
        is_one_list = parts - body.count(b",") <= _MAX_JSON_PARTS
        is_of_text = body.count(b'"') > 2 * max_images
        if is_one_list and is_of_text:
            raise too_many_images(max_images)
        raise APIError(400, "invalid_request", _JSON)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise APIError(400, "invalid_json", "The body is not JSON.") from error
    if isinstance(document, dict) and (names := EXAMPLES.keys() & document.keys()):
        raise misplaced(min(names))
    images = document.get("images") if isinstance(document, dict) else None
    if isinstance(document, dict) and document.keys() - {"images"}:
        raise APIError(400, "invalid_request", _ONLY_IMAGES)
    if not isinstance(images, list) or not images or not all(isinstance(text, str) for text in images):
        raise APIError(400, "invalid_request", _JSON)
    if len(images) > max_images:
        raise too_many_images(max_images)
    try:
        return [base64.b64decode(text, validate=True) for text in images]
    except (binascii.Error, ValueError) as error:
        raise APIError(400, "invalid_base64", _NO_BASE64) from error
