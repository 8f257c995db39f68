"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690, algorithm 1): PGD that chooses its own step sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from training.attacks.ball import Ball
from training.attacks.criteria import Criterion
from training.attacks.frozen import frozen
from training.attacks.losses import Loss
from training.attacks.search import Best, Look, look

_MOMENTUM = 0.75  # alpha: the weight of the new step against the last move
_PROGRESS = 0.75  # rho: the share of steps that must have increased the loss to keep the step size


def checkpoints(steps: int) -> list[int]:
    """The steps at which step sizes are reconsidered: ever closer together (section 3.1 of the paper)."""
    places = [0.0, 0.22]
    while places[-1] < 1:
        places.append(places[-1] + max(places[-1] - places[-2] - 0.03, 0.06))
    # Rounded first: 0.57 * 100 is 57.000000000000004 in floating point.
    return [math.ceil(round(place * steps, 9)) for place in places[1:] if place <= 1]


@dataclass
class _Walk:
    """The examples still being attacked: where each one is, was, and fared best."""

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

    def keep(self, rows: Tensor) -> None:
        """Drop all examples but ``rows`` (a mask)."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])

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


def apgd(
    model: Deployed,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    criterion: Criterion,
    *,
    loss: Loss,
    steps: int,
    generator: torch.Generator,
    targets: Tensor | None = None,
    start: Tensor | None = None,
    keep_going: bool = False,
) -> Tensor:
    """Maximise ``loss`` in the ball; an example is done as soon as it meets the criterion.

    Args:
        images: float32 [N, channels, H, W] in [0, 1]; labels int64 [N].
        loss: on raw logits; see `losses`.
        targets: int64 [N], for a targeted loss.
        start: where to begin, in the ball; a random point of it unless given.
        keep_going: use every step, for the highest loss among successes.

    Returns the best images found: successes where there are any, else those of the highest loss.
    """
    targets = labels if targets is None else targets
    with frozen(model):
        start = ball.random_start(images, generator) if start is None else start
        seen = look(model, start, labels, targets, loss, criterion)
        best = Best(images)
        everything = torch.arange(len(images), device=images.device)
        best.offer(everything, start, seen)
        walk = _start(everything, start, seen, ball)
        since = 0
        for step in range(1, steps + 1):
            if not keep_going:
                walk.keep(~best.success[walk.index])
            if len(walk.index) == 0:
                break
            origin = images[walk.index]
            ahead = _step(walk, origin, ball, first=step == 1)
            seen = look(model, ahead, labels[walk.index], targets[walk.index], loss, criterion)
            best.offer(walk.index, ahead, seen)
            walk.arrive(ahead, seen)
            since += 1
            if step in checkpoints(steps):
                walk.reconsider(since)
                since = 0
        return best.images


def _start(index: Tensor, images: Tensor, seen: Look, ball: Ball) -> _Walk:
    assert seen.gradient is not None
    return _Walk(
        index=index,
        current=images,
        previous=images,
        gradient=seen.gradient,
        step_size=torch.full_like(seen.loss, (1.0 if ball.norm == "l1" else 2.0) * ball.eps),
        best=images.clone(),
        best_gradient=seen.gradient.clone(),
        best_loss=seen.loss.clone(),
        last_loss=seen.loss.clone(),
        increases=torch.zeros_like(seen.loss),
        halved=torch.ones_like(seen.success),  # the first checkpoint has no earlier one to be stuck since
        loss_at_checkpoint=seen.loss.clone(),
    )


def _step(walk: _Walk, origin: Tensor, ball: Ball, *, first: bool) -> Tensor:
    size = walk.step_size.view(-1, 1, 1, 1)
    ahead = ball.project(origin, ball.ascend(walk.current, walk.gradient, size))
    if first:
        return ahead
    move = _MOMENTUM * (ahead - walk.current) + (1 - _MOMENTUM) * (walk.current - walk.previous)
    return ball.project(origin, walk.current + move)
