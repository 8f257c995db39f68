"""Sample images of the operator's own, for the page: read once when the server starts, and never again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from ducat_serve.errors import DataError
from ducat_serve.images import ImageError, decode

MAX_SAMPLES = 12
MAX_BYTES = 2**20  # of one file
KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
}


@dataclass(frozen=True)
class Sample:
    """The bytes of one image file, and their media type."""

    data: bytes
    kind: str


@dataclass(frozen=True)
class Samples:
    """Image files by name, in order, and how many more there were."""

    images: dict[str, Sample]
    left_out: int = 0


def read_samples(folder: Path | None) -> Samples:
    """The first image files in ``folder``, by name; none without a folder.

    Requests are answered from memory, so there is no path that a client could climb.

    Raises:
        DataError: no such folder, no image in it, one too large, or one that does not decode.
    """
    if folder is None:
        return Samples({})
    if not folder.is_dir():
        raise DataError(
            f"There is no folder {folder} with sample images.", "ducat serve MODEL --samples FOLDER"
        )
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS)
    if not files:
        raise DataError(
            f"{folder} holds no image ({', '.join(KINDS)}).", "ducat serve MODEL --samples FOLDER"
        )
    taken = files[:MAX_SAMPLES]
    return Samples({path.name: _read(path) for path in taken}, left_out=len(files) - len(taken))


def _read(path: Path) -> Sample:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES} bytes.", "make it smaller")
        path.name.encode()  # a name that is not Unicode has no place in JSON
        data = path.read_bytes()
        with warnings.catch_warnings(action="ignore"):  # Pillow's: one for every odd chunk of a PNG
            decode(data)
    except (OSError, UnicodeError, ImageError) as error:
        raise DataError(f"{path} cannot be a sample: {error}", "take it out of the folder") from error
    return Sample(data, KINDS[path.suffix.lower()])
