"""The embedded data set: 1,797 real 8x8 images of handwritten digits that scikit-learn ships (UCI, 1998)."""

from __future__ import annotations

import numpy as np

from ducat_serve.errors import missing_extra
from training.data.cache import Decoded, Split, content_digest
from training.data.splits import hold_out

TEST_IMAGES = 360  # a share of every class is held out, so 359 after rounding


def read_digits() -> Decoded:
    """Digits as RGB images [N, 8, 8, 3]; the same 359 images are always the test split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "train") from error
    bunch = load_digits()
    # Intensities are 0..16; pixels are 0..255.
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    everything = Split(images, bunch.target.astype(np.int64))
    train, test = hold_out(everything, TEST_IMAGES, seed=0)
    names = tuple(str(name) for name in bunch.target_names)
    return Decoded(names, train, None, test, content_digest(names, [train, test]))
