"""The embedded data set: 1,797 real 8x8 images of handwritten digits that scikit-learn ships (UCI, 1998)."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ducat_serve.errors import missing_extra
from training.data.cache import Decoded, Split, content_digest
from training.data.splits import hold_out

TEST_IMAGES = 360  # a share of every class is held out, so 359 after rounding


def read_digits() -> Decoded:
    """Digits as RGB images [N, 8, 8, 3]; the same 359 images are always the test split."""
    # Found, not imported: scikit-learn would bring SciPy's statistics, seconds for a table of 64 columns and a label.
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise missing_extra("scikit-learn", "train")
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(file, "rt") as text:
        table = np.loadtxt(text, delimiter=",")
    # Intensities are 0..16; pixels are 0..255.
    grey = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    everything = Split(images, table[:, 64].astype(np.int64))
    train, test = hold_out(everything, TEST_IMAGES, seed=0)
    names = tuple(str(digit) for digit in range(10))
    return Decoded(names, train, None, test, content_digest(names, [train, test]))
