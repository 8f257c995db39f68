"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random squares, scores only, no gradient.

It needs nothing but logits, so it also runs on an exported model, and it does not care about gradient masking.
linf is as published. For l2 and l1 we keep the random square but project onto the ball instead of moving mass
between two windows, which is simpler and somewhat weaker.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from training.attacks.ball import Ball
from training.attacks.losses import margin
from training.attacks.search import Best, Look, right

Scores = Callable[[Tensor], Tensor]  # float images [N, channels, H, W] to C logits [N, C]

_FIRST_SHARE = 0.8  # of the pixels that the first square covers (AutoAttack's setting)
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # of the queries, at which the share halves


def square(
    scores: Scores, images: Tensor, labels: Tensor, ball: Ball, *, queries: int, generator: torch.Generator
) -> Tensor:
    """Search for wrong decisions with at most ``queries`` queries per image.

    Args:
        scores: the deployed function, images to C logits; no gradient is taken.
        images: float32 [N, channels, H, W] in [0, 1]; labels int64 [N].

    Returns the best images found: wrong ones where there are any, else those of the highest margin loss.
    """
    best = Best(images)
    everything = torch.arange(len(images), device=images.device)
    for query in range(queries):
        index = everything[~best.wrong]
        if len(index) == 0:
            break
        origin = images[index]
        if query == 0:
            stripes = _signs((len(index), images.shape[1], 1, images.shape[3]), generator, images)
            candidates = ball.project(origin, origin + ball.eps * stripes)
        else:
            candidates = _propose(best.images[index], origin, ball, _side(images, query / queries), generator)
        best.offer(index, candidates, _score(scores, candidates, labels[index]))
    return best.images


@torch.no_grad()
def _score(scores: Scores, images: Tensor, labels: Tensor) -> Look:
    logits = scores(images)
    return Look(margin("none")(logits, labels, labels), ~right(logits, labels), None)


def _propose(current: Tensor, origin: Tensor, ball: Ball, side: int, generator: torch.Generator) -> Tensor:
    count, channels, height, width = current.shape
    rows = torch.arange(height, device=current.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=current.device).view(1, 1, 1, -1)
    tall, wide = min(side, height), min(side, width)
    top = _below(height - tall + 1, count, generator, current)
    left = _below(width - wide + 1, count, generator, current)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    bump = ball.eps * _signs((count, channels, 1, 1), generator, current)
    if ball.norm == "linf":  # the square is set to one corner of the ball
        return torch.where(inside, ball.project(origin, origin + bump), current)
    # Elsewhere the whole budget goes into the square, and the projection shares it out.
    pixels = tall * wide * channels
    bump = bump / (pixels**0.5 if ball.norm == "l2" else pixels)
    return ball.project(origin, torch.where(inside, current + bump, current))


def _side(images: Tensor, progress: float) -> int:
    share = _FIRST_SHARE / 2 ** sum(progress > place for place in _HALVINGS)
    height, width = images.shape[2:]
    return max(1, min(round(math.sqrt(share * height * width)), min(height, width) - 1))


def _below(limit: int, count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randint(limit, (count, 1, 1, 1), generator=generator, device=like.device)


def _signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    draw = torch.randint(2, shape, generator=generator, device=like.device)
    return (2 * draw - 1).to(like.dtype)
