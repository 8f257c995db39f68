"""Square attack: a random search that sees nothing but scores, on 8-bit images.

Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial attack via random
search" (ECCV 2020), in its linf form: start from vertical stripes, then try squares of one colour at the edge of the
ball.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ducat_serve.predictor import Predictions

_FIRST_SHARE = 0.8  # of the image that a square covers at first
_HALVED_AT = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of all queries, as in the paper
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Found:
    """The search after ``queries`` questions: its best image [H, W, channels], and what the model says of it."""

    queries: int
    image: Image
    class_id: int
    confidence: float  # in that class
    fooled: bool


def search(
    image: Image,
    answer: Predictions,
    levels: int,
    ask: Callable[[Image], Predictions],
    queries: int,
    seed: int,
) -> Iterator[Found]:
    """Yield the state after every question; ends where the model's answer has changed, or ``queries`` are spent.

    Args:
        image: uint8 [H, W, channels].
        answer: what the model says of it; the first question, which was asked already.
        levels: every value changes by at most so many of 255.
        ask: predictions for images [1, H, W, channels].
    """
    random = np.random.default_rng(seed)
    lowest = np.maximum(image.astype(np.int16) - levels, 0).astype(np.uint8)
    highest = np.minimum(image.astype(np.int16) + levels, 255).astype(np.uint8)
    right = int(answer.label[0])
    best, margin = image, np.inf
    yield Found(1, image, right, float(answer.confidence[0]), fooled=False)
    told = answer
    for asked in range(2, queries + 1):
        candidate = _stripes(lowest, highest, random) if asked == 2 else best.copy()
        if asked > 2:
            _paint_square(candidate, lowest, highest, _side(image.shape, asked / queries), random)
        answer = ask(candidate[None])
        found = _margin(answer, right)
        if found < margin:
            best, margin, told = candidate, found, answer
        fooled = int(told.label[0]) != right
        yield Found(asked, best, int(told.label[0]), float(told.confidence[0]), fooled)
        if fooled:
            return


def _margin(answer: Predictions, right: int) -> float:
    """By how much the right class is ahead of the best other one."""
    others = np.delete(answer.logits[0], right)
    return float(answer.logits[0, right] - others.max())


def _side(shape: tuple[int, ...], spent: float) -> int:
    share = _FIRST_SHARE / 2 ** sum(spent > limit for limit in _HALVED_AT)
    height, width = shape[:2]
    side: int = round((share * height * width) ** 0.5)
    return min(height, width, max(1, side))


def _stripes(lowest: Image, highest: Image, random: np.random.Generator) -> Image:
    _, width, channels = lowest.shape
    up = random.integers(0, 2, (1, width, channels), dtype=bool)
    return np.where(up, highest, lowest)


def _paint_square(
    image: Image, lowest: Image, highest: Image, side: int, random: np.random.Generator
) -> None:
    height, width, channels = image.shape
    top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
    where = (slice(top, top + side), slice(left, left + side))
    up = random.integers(0, 2, channels, dtype=bool)
    image[where] = np.where(up, highest[where], lowest[where])
