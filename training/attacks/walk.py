"""Where APGD is and how it moves: dense steps for linf and l2, sparse ones for l1.

Dense: Croce and Hein 2020 (arXiv 2003.01690, algorithm 1). Sparse: Croce and Hein 2021 ("Mind the box", arXiv
2103.01208, section 3): steepest l1 ascent on the most important pixels, as many as the best perturbation so far uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from training.attacks.ball import Ball
from training.attacks.base import Look

_MOMENTUM = 0.75  # alpha: the weight of the new step against the last move
_PROGRESS = 0.75  # rho: the share of steps that must have increased the loss to keep the step size
_FIRST_SPARSITY = 0.2  # share of pixels that the first sparse steps move
_SPARSER = 1.5  # by what sparsity and step size shrink
_SMALLEST_STEP = 0.1  # of eps


def dense_checkpoints(steps: int) -> list[int]:
    """The steps at which step sizes are reconsidered: ever closer together (section 3.1 of the paper)."""
    places = [0.0, 0.22]
    while places[-1] < 1:
        places.append(places[-1] + max(places[-1] - places[-2] - 0.03, 0.06))
    # Rounded first: 0.57 * 100 is 57.000000000000004 in floating point.
    return [math.ceil(round(place * steps, 9)) for place in places[1:] if place <= 1]


@dataclass
class Walk:
    """The examples still being attacked: where each one is, was, and fared best."""

    origin: Tensor  # the clean images

    index: Tensor  # which example, int64 [M]
    current: Tensor
    previous: Tensor
    gradient: Tensor  # at current
    step_size: Tensor  # [M]
    best: Tensor  # where the loss was highest
    best_gradient: Tensor
    best_loss: Tensor  # [M]
    last_loss: Tensor  # at current
    increases: Tensor  # steps since the last checkpoint that increased the loss
    halved: Tensor  # bool: whether the step size was halved at the last checkpoint
    loss_at_checkpoint: Tensor  # best_loss at the last checkpoint
    sparsity: Tensor  # [M], share of pixels that a sparse step moves
    pixels_moved: Tensor  # [M], by the best perturbation at the last checkpoint
    longest_step: Tensor  # [M], what step_size began with
    first_step: ClassVar[float] = 2.0  # of eps

    @classmethod
    def begin(cls, index: Tensor, origin: Tensor, start: Tensor, seen: Look, ball: Ball) -> Walk:
        """Stand at ``start``, of which ``seen`` is the look."""
        assert seen.gradient is not None
        return cls(
            index=index,
            origin=origin,
            current=start.clone(),
            previous=start,
            gradient=seen.gradient,
            step_size=torch.full_like(seen.loss, cls.first_step * ball.eps),
            best=start.clone(),
            best_gradient=seen.gradient.clone(),
            best_loss=seen.loss.clone(),
            last_loss=seen.loss.clone(),
            increases=torch.zeros_like(seen.loss),
            halved=torch.ones_like(seen.success),  # the first checkpoint has no earlier one to be stuck since
            loss_at_checkpoint=seen.loss.clone(),
            longest_step=torch.full_like(seen.loss, cls.first_step * ball.eps),
            sparsity=torch.full_like(seen.loss, _FIRST_SPARSITY),
            pixels_moved=torch.full_like(seen.loss, float(start[0].numel())),
        )

    @staticmethod
    def checkpoints(steps: int) -> list[int]:
        """The steps after which step sizes are reconsidered."""
        return dense_checkpoints(steps)

    def keep(self, rows: Tensor) -> None:
        """Drop all examples but ``rows`` (a mask)."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])

    def ahead(self, ball: Ball, *, first: bool) -> Tensor:
        """The next images: a step along the gradient, with momentum but for the first."""
        size = self.step_size.view(-1, 1, 1, 1)
        ahead = ball.project(self.origin, ball.ascend(self.current, self.gradient, size))
        if first:
            return ahead
        move = _MOMENTUM * (ahead - self.current) + (1 - _MOMENTUM) * (self.current - self.previous)
        return ball.project(self.origin, self.current + move)

    def arrive(self, images: Tensor, seen: Look) -> None:
        """Record a step."""
        assert seen.gradient is not None
        self.previous, self.current, self.gradient = self.current, images, seen.gradient
        self.increases += seen.loss > self.last_loss
        self.last_loss = seen.loss
        better = seen.loss > self.best_loss
        self.best[better] = images[better]
        self.best_gradient[better] = seen.gradient[better]
        self.best_loss[better] = seen.loss[better]

    def reconsider(self, steps: int) -> None:
        """Halve the step size and go back to the best place where ``steps`` steps brought too little."""
        too_few = self.increases < _PROGRESS * steps
        stuck = ~self.halved & (self.best_loss <= self.loss_at_checkpoint)
        self.halved = too_few | stuck
        self.loss_at_checkpoint = self.best_loss.clone()
        self.increases = torch.zeros_like(self.increases)
        self.step_size[self.halved] /= 2
        self.current[self.halved] = self.best[self.halved]
        self.gradient[self.halved] = self.best_gradient[self.halved]


@dataclass
class SparseWalk(Walk):
    """l1: every step moves few pixels; how few follows from the best perturbation so far."""

    first_step: ClassVar[float] = 1.0

    @staticmethod
    def checkpoints(steps: int) -> list[int]:
        every = max(1, int(0.04 * steps))
        return list(range(every, steps + 1, every))

    def ahead(self, ball: Ball, *, first: bool) -> Tensor:  # noqa: ARG002 (no momentum at all)
        size = self.step_size.view(-1, 1, 1, 1)
        return ball.project(self.origin, ball.ascend(self.current, self.gradient, size, self.sparsity))

    def reconsider(self, steps: int) -> None:  # noqa: ARG002
        """Fewer pixels in the best perturbation: go back to it with long, sparser steps. Else shorten the steps."""
        pixels = self.origin[0].numel()
        moved = ((self.best - self.origin).abs() > 1e-8).flatten(1).sum(dim=1).to(self.sparsity.dtype)
        sparser = moved < 0.95 * self.pixels_moved
        self.sparsity = moved / pixels / _SPARSER
        self.step_size = torch.where(sparser, self.longest_step, self.step_size / _SPARSER)
        self.step_size = torch.maximum(self.step_size, _SMALLEST_STEP * self.longest_step)
        self.pixels_moved = moved
        self.current[sparser] = self.best[sparser]
        self.gradient[sparser] = self.best_gradient[sparser]
