"""Hold a validation split out of the training images."""

from __future__ import annotations

import numpy as np

from ducat_serve.errors import DataError
from training.data.cache import Split


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Split off about ``count`` images, the same share of every class, chosen by ``seed``.

    Returns (rest, held out), both in the original order. Raises DataError where a class has too few images.
    """
    generator = np.random.default_rng(seed)
    share = count / len(split)
    chosen = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        if len(members) < 2:
            raise DataError(
                f"Class {label} has {len(members)} training image; val needs one held out of it too."
            )
        take = min(max(1, round(share * len(members))), len(members) - 1)
        chosen[generator.choice(members, take, replace=False)] = True
    return Split(split.images[~chosen], split.labels[~chosen]), Split(
        split.images[chosen], split.labels[chosen]
    )
