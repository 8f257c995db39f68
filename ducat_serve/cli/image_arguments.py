"""The IMAGES of `ducat predict`: files, folders, patterns such as `photos/*.jpg`, and `-` for stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ducat_serve.errors import DataError
from ducat_serve.folder_walk import files_below
from ducat_serve.images import IMAGE_SUFFIXES
from ducat_serve.output import Output
from ducat_serve.regular_file import read_regular_file

STDIN = "-"
_PATTERN = "*?["
_ADDRESSES = ("http://", "https://")


@dataclass(frozen=True)
class ImageArgument:
    """One image: its name as it is printed. ``problem`` says why there is none to read."""

    name: str
    problem: str | None = None

    def read(self) -> bytes:
        """The bytes of the file. Raises DataError where it cannot be read."""
        if self.problem is not None:
            raise DataError(self.problem)
        if self.name.startswith(_ADDRESSES):
            raise DataError(f"{self.name} is not fetched: curl -s URL | ducat predict MODEL -")
        if self.name != STDIN:
            return read_regular_file(Path(self.name), self.name, "give image files")
        if sys.stdin is None:
            raise DataError("Cannot read -: standard input is closed.", "give image files")
        try:
            return sys.stdin.buffer.read()
        except OSError as error:
            raise DataError(f"Cannot read {self.name}: {error.strerror}.") from error


def image_arguments(arguments: tuple[str, ...], output: Output) -> Iterator[ImageArgument]:
    """The images that ``arguments`` name, in their order; folders with all that is below them, sorted."""
    for argument in arguments:
        if argument == STDIN:
            yield ImageArgument(argument)
        elif os.path.isdir(argument):  # noqa: PTH112 (a Path would drop the "./" that the user wrote)
            yield from _below(argument, output)
        elif not os.path.lexists(argument) and any(sign in argument for sign in _PATTERN):
            # Shells leave patterns alone that are quoted, or too long for a command line.
            found = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (it keeps the path as it was written)
            files = [name for name in found if Path(name).is_file()]
            if not files:
                yield ImageArgument(argument, f"No file matches {argument}.")
            yield from map(ImageArgument, files)
        else:
            yield ImageArgument(argument)


def _below(folder: str, output: Output) -> Iterator[ImageArgument]:
    others: Counter[str] = Counter()
    unreadable: list[OSError] = []
    found = False
    for path in files_below(Path(folder), unreadable.append, hidden=False):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            found = True
            yield ImageArgument(str(path))
        else:
            others[suffix or "without a suffix"] += 1
    for error in unreadable:
        yield ImageArgument(str(error.filename), f"Cannot read {error.filename}: {error.strerror}.")
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        output.say(f"{folder}: passed over what is no image: {counts}.")
    if not found and not unreadable:
        yield ImageArgument(folder, f"{folder} holds no image.")
