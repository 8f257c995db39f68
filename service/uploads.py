"""Multipart forms: the files in the field `image`, once or several times."""

from __future__ import annotations

import contextlib
import sys

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.problems import Problem

FIELD = "image"


async def uploaded_files(request: Request, max_images: int) -> list[bytes]:
    """The contents of every file in the field `image` of a multipart form. Raises Problem."""
    form = await _parse(request, max_images)
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
    """Knows whether the form's closing boundary came; without it Starlette drops the last part silently.

    A part that says it is an image is a file, whether or not it has a file name (RFC 7578 lets it have none).
    """

    ended = False
    # Never to a file, which a full disk would refuse: bodies are bounded one by one and together (body_limit.py).
    spool_max_size = sys.maxsize

    def on_headers_finished(self) -> None:
        part = self._current_part
        kind = dict(part.item_headers).get(b"content-type", b"").lower()
        disposition = part.content_disposition or b""
        if kind.startswith(b"image/") and b"filename" not in disposition:
            part.content_disposition = disposition + b'; filename=""'
        super().on_headers_finished()

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
