"""Small folders of images of three classes, laid out as `folder:PATH` wants them, and folders that cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_colours(folder: Path, train: int = 12, test: int = 4, size: int = 16) -> None:
    """Write `train` and `test` JPEG images for each of three classes: noise around a colour."""
    generator = np.random.default_rng(0)
    for label, colour in {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}.items():
        for split, count in (("train", train), ("test", test)):
            place = folder / split / label
            place.mkdir(parents=True)
            for index in range(count):
                pixels = generator.normal(colour, 25, (size, size, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.jpg")


def make_unreadable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system refuse to list a folder; its mode alone would not stop root."""
    real = os.scandir

    def scandir(path: str | Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).resolve() == folder.resolve():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
