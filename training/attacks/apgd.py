"""Auto-PGD: PGD that chooses its own step sizes. Dense steps for linf and l2, sparse ones for l1.

Dense: Croce and Hein 2020 (arXiv 2003.01690, algorithm 1). Sparse: Croce and Hein 2021 ("Mind the box", arXiv
2103.01208, section 3): steepest l1 ascent on the most important pixels, as many as the best perturbation so far uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from training.attacks.ball import Ball
from training.attacks.base import Attack, Best, Evaluated, Task, nonzero, value_and_grad
from training.attacks.criteria import never
from training.attacks.frozen import frozen
from training.attacks.losses import LossOfFold
from training.attacks.rivals import beaten, better_half, halvings

_MOMENTUM = 0.75  # alpha: the weight of the new step against the last move
_PROGRESS = 0.75  # rho: the share of steps that must have increased the loss to keep the step size
_SPARSER = 1.5  # by what sparsity and step size shrink
_SMALLEST_STEP = 0.1  # of eps
_OUTSIDE = 0.3  # share of the steps that each of two larger l1 balls gets


@dataclass(frozen=True)
class APGD(Attack):
    """Maximises ``loss`` in the ball; an example is done as soon as it meets the criterion."""

    name: ClassVar[str] = "apgd"
    loss: LossOfFold
    steps: int = 100

    def __call__(
        self,
        task: Task,
        *,
        targets: Tensor | None = None,
        start: Tensor | None = None,
        keep_going: bool = False,
        rivals: Tensor | None = None,
    ) -> Tensor:
        """Attack a batch; beside what every attack is given:

        Args:
            targets: int64 [N], for a targeted loss.
            start: where to begin, in the ball; a random point of it unless given (l1: what larger balls lead to).
            keep_going: use every step, for the highest loss among successes.
            rivals: int64 [N]; rows of one number search for the same thing. All of them stop where one succeeds, and
                the worse half of them stops early; see `rivals.better_half`.

        Returns the best images found: successes where there are any, else those of the highest loss.
        """
        model, images, labels, ball = task.model, task.images, task.labels, task.ball
        targets = labels if targets is None else targets
        loss, steps = self.loss(model.fold), self.steps
        with frozen(model):
            if start is None and ball.norm == "l1":
                start = self._from_outside(task, targets)
                steps -= 2 * int(_OUTSIDE * steps)
            elif start is None:
                start = ball.random_start(images, task.generator)
            evaluated, gradient = value_and_grad(model, start, labels, targets, loss, task.criterion)
            best = Best(images)
            everything = torch.arange(len(images), device=images.device)
            best.offer(everything, start, evaluated)
            kind = SparseIterates if ball.norm == "l1" else Iterates
            iterates = kind.begin(everything, images, start, evaluated, gradient, ball)
            iterates.keep(nonzero(gradient))  # without a gradient it would stay where it is
            last_checkpoint = 0
            for step in range(1, steps + 1):
                if not keep_going:
                    iterates.keep(~beaten(best.success, rivals)[iterates.index])
                index = iterates.index
                if len(index) == 0:
                    break
                proposed = iterates.propose(ball, first=step == 1)
                evaluated, gradient = value_and_grad(
                    model, proposed, labels[index], targets[index], loss, task.criterion
                )
                best.offer(index, proposed, evaluated)
                iterates.update(proposed, evaluated, gradient)
                if step in iterates.checkpoints(steps):
                    iterates.checkpoint(step - last_checkpoint)
                    last_checkpoint = step
                if rivals is not None and step in halvings(steps):
                    iterates.keep(better_half(rivals[iterates.index], iterates.best_loss))
            return best.images

    def _from_outside(self, task: Task, targets: Tensor) -> Tensor:
        """Search balls of 3 and 2 times eps first (Croce and Hein 2021, 3.3): which pixels matter shows there."""
        images, ball = task.images, task.ball
        shorter = replace(self, steps=int(_OUTSIDE * self.steps))
        start = images
        for factor in (3, 2):
            larger = replace(ball, eps=factor * ball.eps)
            if factor == 3:  # sparse after the projection, as the reference begins
                noise = torch.randn(
                    images.shape, generator=task.generator, device=images.device, dtype=images.dtype
                )
                start = images + noise
            start = larger.project(images, start)
            outside = replace(task, ball=larger, criterion=never)
            start = shorter(outside, targets=targets, start=start, keep_going=True)
        return ball.project(images, start)


def dense_checkpoints(steps: int) -> list[int]:
    """The steps at which step sizes are reconsidered: ever closer together (section 3.1 of the paper)."""
    places = [0.0, 0.22]
    while places[-1] < 1:
        places.append(places[-1] + max(places[-1] - places[-2] - 0.03, 0.06))
    # Rounded first: 0.57 * 100 is 57.000000000000004 in floating point.
    return [math.ceil(round(place * steps, 9)) for place in places[1:] if place <= 1]


@dataclass
class Iterates:
    """The examples still being attacked: where each one is, was, and fared best. Dense steps, for linf and l2."""

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
    sparsity: Tensor  # [M], share of pixels that a sparse step moves; dense ones know nothing of it
    pixels_moved: Tensor  # [M], by the best perturbation at the last checkpoint; for sparse steps
    longest_step: Tensor  # [M], what step_size began with
    first_step: ClassVar[float] = 2.0  # of eps

    @classmethod
    def begin(
        cls, index: Tensor, origin: Tensor, start: Tensor, evaluated: Evaluated, gradient: Tensor, ball: Ball
    ) -> Iterates:
        """All examples at ``start``."""
        loss = evaluated.loss
        return cls(
            index=index,
            origin=origin,
            current=start.clone(),
            previous=start,
            gradient=gradient,
            step_size=torch.full_like(loss, cls.first_step * ball.eps),
            best=start.clone(),
            best_gradient=gradient.clone(),
            best_loss=loss.clone(),
            last_loss=loss.clone(),
            increases=torch.zeros_like(loss),
            halved=torch.ones_like(
                evaluated.success
            ),  # the first checkpoint has no earlier one to be stuck since
            loss_at_checkpoint=loss.clone(),
            longest_step=torch.full_like(loss, cls.first_step * ball.eps),
            sparsity=torch.zeros_like(loss),
            pixels_moved=torch.zeros_like(loss),
        )

    @staticmethod
    def checkpoints(steps: int) -> list[int]:
        """The steps after which step sizes are reconsidered."""
        return dense_checkpoints(steps)

    def keep(self, rows: Tensor) -> None:
        """Drop all examples but ``rows`` (a mask)."""
        if bool(rows.all()):
            return
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])

    def propose(self, ball: Ball, *, first: bool) -> Tensor:
        """The next images: a step along the gradient, with momentum but for the first."""
        size = self.step_size.view(-1, 1, 1, 1)
        ahead = ball.project(self.origin, ball.ascend(self.current, self.gradient, size))
        if first:
            return ahead
        move = _MOMENTUM * (ahead - self.current) + (1 - _MOMENTUM) * (self.current - self.previous)
        return ball.project(self.origin, self.current + move)

    def update(self, images: Tensor, evaluated: Evaluated, gradient: Tensor) -> None:
        """Move to the proposed images."""
        loss = evaluated.loss
        self.previous, self.current, self.gradient = self.current, images, gradient
        self.increases += loss > self.last_loss
        self.last_loss = loss
        better = loss > self.best_loss
        self.best[better] = images[better]
        self.best_gradient[better] = gradient[better]
        self.best_loss[better] = loss[better]

    def checkpoint(self, steps: int) -> None:
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
class SparseIterates(Iterates):
    """l1: every step moves few pixels; how few follows from the best perturbation so far."""

    first_step: ClassVar[float] = 1.0

    @classmethod
    def begin(
        cls, index: Tensor, origin: Tensor, start: Tensor, evaluated: Evaluated, gradient: Tensor, ball: Ball
    ) -> Iterates:
        """All examples at ``start``; the first steps are sparser than that."""
        iterates = super().begin(index, origin, start, evaluated, gradient, ball)
        iterates.pixels_moved = _moved(start, origin)
        iterates.sparsity = iterates.pixels_moved / origin[0].numel() / _SPARSER
        return iterates

    @staticmethod
    def checkpoints(steps: int) -> list[int]:
        every = max(1, int(0.04 * steps))
        return list(range(every, steps + 1, every))

    def propose(self, ball: Ball, *, first: bool) -> Tensor:  # noqa: ARG002 (no momentum at all)
        size = self.step_size.view(-1, 1, 1, 1)
        return ball.project(self.origin, ball.ascend(self.current, self.gradient, size, self.sparsity))

    def checkpoint(self, steps: int) -> None:  # noqa: ARG002
        """Fewer pixels in the best perturbation: go back to it with long, sparser steps. Else shorten the steps."""
        pixels = self.origin[0].numel()
        moved = _moved(self.best, self.origin)
        sparser = moved < 0.95 * self.pixels_moved
        self.sparsity = moved / pixels / _SPARSER
        self.step_size = torch.where(sparser, self.longest_step, self.step_size / _SPARSER)
        self.step_size = torch.maximum(self.step_size, _SMALLEST_STEP * self.longest_step)
        self.pixels_moved = moved
        self.current[sparser] = self.best[sparser]
        self.gradient[sparser] = self.best_gradient[sparser]


def _moved(images: Tensor, origin: Tensor) -> Tensor:
    """How many values of each image differ, [N]."""
    return ((images - origin).abs() > 1e-8).flatten(1).sum(dim=1).to(images.dtype)
