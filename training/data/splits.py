"""Parts of a split: the images held out of it for validation, and those that are chosen to be measured on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ducat_serve.errors import DataError
from training.data.cache import Split
from training.randomness import subset

VAL_SHARE = 0.1
MAX_VAL_IMAGES = 1000


def val_count(images: int) -> int:
    """How many of the training images are held out as val where nobody says otherwise."""
    return min(MAX_VAL_IMAGES, round(VAL_SHARE * images))


def held_out_of(members: int, share: float) -> int:
    """How many images of a class with ``members`` are held out: at least one, and not all."""
    return min(max(1, round(share * members)), members - 1)


def fitting_batch_size(images: int) -> int:
    """A batch size with which an epoch of so many images has at least two updates, where there are four images."""
    return 1 << max(1, images.bit_length() - 2)


def hold_out(
    split: Split, count: int, seed: int, class_names: Sequence[str] | None = None
) -> tuple[Split, Split]:
    """Split off about ``count`` images, the same share of every class, chosen by ``seed``. Images on disk stay there.

    Returns (rest, held out), both in the original order. Raises DataError where a class has too few images.
    """
    generator = np.random.default_rng(seed)
    share = count / len(split)
    chosen = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        if len(members) < 2:
            name = f"'{class_names[label]}'" if class_names else label
            raise DataError(
                f"Class {name} has {len(members)} training image; val needs one held out of it too.",
                "add images of it, remove the class, or lay out val/ and test/ yourself",
            )
        chosen[generator.choice(members, held_out_of(len(members), share), replace=False)] = True
    return _picked(split, ~chosen), _picked(split, chosen)


def choose_images(images: Split, count: int | None, seed: int) -> tuple[Split, tuple[int, ...]]:
    """The first ``count`` images of a seeded shuffle, in their order, and their places; all of them for None."""
    if count is None or count >= len(images):
        return images, tuple(range(len(images)))
    index = subset(len(images), count, seed).numpy()
    return Split(images.at(index), images.labels[index]), tuple(index.tolist())


def _picked(split: Split, chosen: NDArray[np.bool_]) -> Split:
    if isinstance(split.stored, np.memmap):
        rows = np.arange(len(split)) if split.rows is None else split.rows
        return Split(split.stored, split.labels[chosen], rows[chosen])
    return Split(split.images[chosen], split.labels[chosen])
