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
from service.api.query import EXAMPLES, misplaced
from service.errors import APIError

FIELD = "image"
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
                part, chunks = event, []
                is_image = part.name == FIELD
                if is_image and not _is_file(part):
                    message = f"The field '{FIELD}' must be a file upload. URLs and text are never fetched."
                    raise APIError(400, "not_a_file", message)
            elif event:
                chunks.append(bytes(event))
            elif is_image:
                images.append(b"".join(chunks))
            else:
                _refuse_misplaced(part, is_empty=not chunks)
                others += 1
            if len(images) > max_images:
                raise too_many_images(max_images)
            if others > _MAX_OTHER_FIELDS:
                raise _malformed(f"it has more than {_MAX_OTHER_FIELDS} fields besides '{FIELD}'")
    return images


def _is_file(part: MultipartSegment) -> bool:
    """A part that says it is an image is a file, whether or not it has a file name (RFC 7578 lets it have none)."""
    return part.filename is not None or (part.content_type or "").startswith("image/")


def _refuse_misplaced(part: MultipartSegment, is_empty: bool) -> None:
    """Raise APIError for a field that would change the answer if it were looked at; other text may be in a form."""
    if part.name in EXAMPLES:
        raise misplaced(part.name)
    # Browsers send a file input in which nothing was chosen as a file without a name and without content.
    if _is_file(part) and (part.filename or not is_empty):
        message = (
            f"A file came in the field {part.name[:40]!a}; every image belongs into the field '{FIELD}'."
        )
        raise APIError(400, "unexpected_file", message)


def _malformed(why: str) -> APIError:
    return APIError(400, "malformed_form", f"The form cannot be read: {why}.")
