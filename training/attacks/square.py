"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random squares, scores only, no gradient.

It needs nothing but logits, so it also runs on an exported model, and it does not care about gradient masking.
linf is here; what differs in l2 and l1, where a square must be paid for, is in `square_windows`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from training.attacks.ball import Ball
from training.attacks.base import Attack, Best, Task, value
from training.attacks.frozen import frozen
from training.attacks.losses import margin
from training.attacks.square_windows import move_budget, tiled_start

_FIRST_SHARE = 0.8  # of the pixels that the first square covers (AutoAttack's setting)
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # of the queries, at which the share halves
_LATE = 0.05  # where in that schedule an attack with a start begins


@dataclass(frozen=True)
class Square(Attack):
    """Random squares that raise the margin loss, with at most ``queries`` queries per image; no gradient is taken."""

    name: ClassVar[str] = "square"
    needs_gradient: ClassVar[bool] = False
    queries: int = 1000

    def __call__(
        self,
        task: Task,
        *,
        start: Tensor | None = None,
    ) -> Tensor:
        """Attack a batch; beside what every attack is given:

        Args:
            start: where to begin, in the ball; there the squares are small from the first. Random stripes (l2, l1:
                bumps) unless given.

        Returns the best images found: successes where there are any, else those of the highest margin loss.
        """
        model, images, labels, ball, generator = (
            task.model,
            task.images,
            task.labels,
            task.ball,
            task.generator,
        )
        margin_loss = margin(model.fold)
        with frozen(model):
            best = Best(images)
            late = 0.0 if start is None else _LATE
            everything = torch.arange(len(images), device=images.device)
            for query in range(self.queries):
                index = everything[~best.success]
                if len(index) == 0:
                    break
                origin, own = images[index], labels[index]
                if query > 0:
                    side = _side(images, late + (1 - late) * query / self.queries)
                    candidates = _propose(best.images[index], origin, ball, side, generator)
                elif start is None and ball.norm != "linf":
                    candidates = tiled_start(origin, ball, generator)
                elif start is None:
                    stripes = _signs((len(index), images.shape[1], 1, images.shape[3]), generator, images)
                    candidates = ball.project(origin, origin + ball.eps * stripes)
                else:
                    candidates = start
                evaluated = value(model, candidates, own, own, margin_loss, task.criterion)
                best.offer(index, candidates, evaluated)
            return best.images


def _propose(current: Tensor, origin: Tensor, ball: Ball, side: int, generator: torch.Generator) -> Tensor:
    if ball.norm != "linf":
        return move_budget(current, origin, ball, side, generator)
    count, channels, height, width = current.shape
    rows = torch.arange(height, device=current.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=current.device).view(1, 1, 1, -1)
    tall, wide = min(side, height), min(side, width)
    top = _below(height - tall + 1, count, generator, current)
    left = _below(width - wide + 1, count, generator, current)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    bump = ball.eps * _signs((count, channels, 1, 1), generator, current)
    # The square is set to one corner of the ball.
    return torch.where(inside, ball.project(origin, origin + bump), current)


def _side(images: Tensor, progress: float) -> int:
    share = _FIRST_SHARE / 2 ** sum(progress > place for place in _HALVINGS)
    height, width = images.shape[2:]
    return max(1, min(round(math.sqrt(share * height * width)), min(height, width) - 1))


def _below(limit: int, count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randint(limit, (count, 1, 1, 1), generator=generator, device=like.device)


def _signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    draw = torch.randint(2, shape, generator=generator, device=like.device)
    return (2 * draw - 1).to(like.dtype)
