"""Which images of a data set a run uses, and as what; what is held out where the data set does not say."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ducat_serve.errors import DataError

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Selection:
    """What the user chose. None is the default of the data set.

    Args:
        val_fraction: of the training images, held out to choose models on.
        test_fraction: of all images of a folder that has no test images of its own.
        skip_broken: leave out images that do not decode, instead of refusing the data set.
    """

    val_fraction: float | None = None
    test_fraction: float | None = None
    skip_broken: bool = False


def share_in_words(share: float) -> str:
    """A share of every class as a percentage, not rounded: 99.9% are not all."""
    return f"{100 * share:.10g}% of each class"


def held_out(names: list[str], fraction: float, label: str) -> set[str]:
    """The part of a class's images that is test: at least one, and never all of them.

    An image's place is decided by its name alone. So the test images stay the same for every seed of a run, on every
    machine, and most of them when images are added. Raises DataError where there is one image only.
    """
    if len(names) < 2:
        raise DataError(
            f"Class '{label}' has {len(names)} image; one to train on and one to test on are needed.",
            "add images of it, or remove the class",
        )
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    return set(
        sorted(names, key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest())[:count]
    )
