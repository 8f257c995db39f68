"""Small folders of images of three classes, laid out as `folder:PATH` wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
