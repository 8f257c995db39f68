"""Multipart forms (RFC 7578): the files in the field `image`, once or several times."""

from __future__ import annotations

# python-multipart, which BentoML brings, has a package of the same name that hands over to this one.
from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from service.api.bounds import too_many_images
from service.errors import APIError

FIELD = "image"
TOP_K_IN_BODY = "'top_k' belongs into the address: POST /v1/predict?top_k=3"
_MAX_OTHER_FIELDS = 8


def uploaded_files(body: bytes, content_type: str, max_images: int) -> list[bytes]:
    """The contents of every file in the field `image` of a multipart form. Raises APIError."""
    try:
        _, options = parse_options_header(content_type)
        images = _images(body, options, max_images)
    except MultipartError as error:
        raise _malformed(str(error.args[0])) from error
    except (ValueError, LookupError) as error:
        raise _malformed("its charset is unusable") from error
    if not images:
        raise APIError(400, "missing_image", f"There is no file in the field '{FIELD}'.")
    return images


def _images(body: bytes, options: dict[str, str], max_images: int) -> list[bytes]:
    """Raises APIError, and MultipartError also where the closing boundary is missing."""
    images: list[bytes] = []
    others = 0
    chunks: list[bytes] = []
    boundary, charset = options.get("boundary", ""), options.get("charset", "utf8")
    with PushMultipartParser(boundary, len(body), header_charset=charset, strict=True) as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                field = event.name
                is_image = field == FIELD
                if is_image:
                    _require_file(event)
                chunks = []
            elif event:
                chunks.append(bytes(event))
            elif is_image:
                images.append(b"".join(chunks))
            elif field == "top_k":
                raise APIError(400, "invalid_top_k", TOP_K_IN_BODY)
            else:
                others += 1
            if len(images) > max_images:
                raise too_many_images(max_images)
            if others > _MAX_OTHER_FIELDS:
                raise _malformed(f"it has more than {_MAX_OTHER_FIELDS} fields besides '{FIELD}'")
    return images


def _require_file(segment: MultipartSegment) -> None:
    """A part that says it is an image is a file, whether or not it has a file name (RFC 7578 lets it have none)."""
    if segment.filename is None and not (segment.content_type or "").startswith("image/"):
        message = f"The field '{FIELD}' must be a file upload. URLs and text are never fetched."
        raise APIError(400, "not_a_file", message)


def _malformed(why: str) -> APIError:
    return APIError(400, "malformed_form", f"The form cannot be read: {why}.")
