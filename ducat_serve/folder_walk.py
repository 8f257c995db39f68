"""The files below a folder of the user's own: links to folders are followed, and nothing is left out in silence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def files_below(folder: Path, on_error: Callable[[OSError], None], *, hidden: bool) -> Iterator[Path]:
    """All files below a folder: its own by name, then those of each folder in it by name.

    A link to a folder is followed, since people put subsets together so. One that leads back to a folder above it is
    not: what is there is found already.

    Args:
        on_error: called with whatever cannot be read; what it does not raise is passed over.
        hidden: whether files and folders count whose names begin with a dot.
    """
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        place, above = waiting.pop()
        try:
            found = place.stat()
            identity = found.st_dev, found.st_ino
            if identity in above:
                continue
            with os.scandir(place) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            on_error(error)
            continue
        folders = []
        for entry in inside:
            if entry.name.startswith(".") and not hidden:
                continue
            try:
                is_folder = entry.is_dir()
            except OSError as error:
                on_error(error)
                continue
            if is_folder:
                folders.append((place / entry.name, above | {identity}))
            else:
                yield place / entry.name
        waiting += reversed(folders)
