"""Multipart forms (RFC 7578): the files in the field `image`, once or several times."""

from __future__ import annotations

# python-multipart, which BentoML brings, has a package of the same name that hands over to this one.
from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)
from starlette.requests import Request

from service.problems import Problem

FIELD = "image"
_MAX_OTHER_FIELDS = 8


async def uploaded_files(request: Request, max_images: int) -> list[bytes]:
    """The contents of every file in the field `image` of a multipart form. Raises Problem."""
    body = await request.body()
    try:
        _, options = parse_options_header(request.headers["content-type"])
        parts = _parts(body, options, max_images + _MAX_OTHER_FIELDS)
    except ParserLimitReached as error:
        message = f"A form holds at most {max_images} images and {_MAX_OTHER_FIELDS} other fields."
        raise Problem(413, "too_many_images", message) from error
    except MultipartError as error:
        raise Problem(400, "malformed_form", f"The form cannot be read: {error.args[0]}.") from error
    except (ValueError, LookupError) as error:
        raise Problem(400, "malformed_form", "The form cannot be read: its charset is unusable.") from error
    images = [(segment, data) for segment, data in parts if segment.name == FIELD]
    if not images:
        raise Problem(400, "missing_image", f"There is no file in the field '{FIELD}'.")
    if len(images) > max_images:
        raise Problem(413, "too_many_images", f"At most {max_images} images per request.")
    if not all(_is_file(segment) for segment, _ in images):
        raise Problem(
            400, "not_a_file", f"The field '{FIELD}' must be a file upload. URLs and text are never fetched."
        )
    return [data for _, data in images]


def _parts(body: bytes, options: dict[str, str], most: int) -> list[tuple[MultipartSegment, bytes]]:
    """Every part of a form with its content. Raises MultipartError, also where the closing boundary is missing."""
    parts: list[tuple[MultipartSegment, bytes]] = []
    chunks: list[bytes] = []
    segment: MultipartSegment | None = None
    charset = options.get("charset", "utf8")
    boundary = options.get("boundary", "")
    with PushMultipartParser(
        boundary, len(body), max_segment_count=most, header_charset=charset, strict=True
    ) as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                segment, chunks = event, []
            elif event:
                chunks.append(bytes(event))
            else:
                parts.append((segment, b"".join(chunks)))
    return parts


def _is_file(segment: MultipartSegment) -> bool:
    """A part that says it is an image is one, whether or not it has a file name (RFC 7578 lets it have none)."""
    return segment.filename is not None or (segment.content_type or "").startswith("image/")
