"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690, algorithm 1): PGD that chooses its own step sizes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from training.attacks.ball import Ball
from training.attacks.base import Best, look
from training.attacks.criteria import Criterion
from training.attacks.frozen import frozen
from training.attacks.losses import Loss
from training.attacks.walk import SparseWalk, Walk

_OUTSIDE = 0.3  # share of the steps that each of two larger l1 balls gets


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
        start: where to begin, in the ball; a random point of it unless given (l1: what larger balls lead to).
        keep_going: use every step, for the highest loss among successes.

    Returns the best images found: successes where there are any, else those of the highest loss.
    """
    targets = labels if targets is None else targets
    with frozen(model):
        if start is None and ball.norm == "l1":
            start = _from_outside(model, images, labels, ball, loss, steps, generator, targets)
            steps -= 2 * int(_OUTSIDE * steps)
        elif start is None:
            start = ball.random_start(images, generator)
        seen = look(model, start, labels, targets, loss, criterion)
        best = Best(images)
        everything = torch.arange(len(images), device=images.device)
        best.offer(everything, start, seen)
        kind = SparseWalk if ball.norm == "l1" else Walk
        walk = kind.begin(everything, images, start, seen, ball)
        reconsidered = 0
        for step in range(1, steps + 1):
            if not keep_going:
                walk.keep(~best.success[walk.index])
            if len(walk.index) == 0:
                break
            ahead = walk.ahead(ball, first=step == 1)
            seen = look(model, ahead, labels[walk.index], targets[walk.index], loss, criterion)
            best.offer(walk.index, ahead, seen)
            walk.arrive(ahead, seen)
            if step in walk.checkpoints(steps):
                walk.reconsider(step - reconsidered)
                reconsidered = step
        return best.images


def _from_outside(
    model: Deployed,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    loss: Loss,
    steps: int,
    generator: torch.Generator,
    targets: Tensor,
) -> Tensor:
    """Search balls of 3 and 2 times eps first (Croce and Hein 2021, section 3.3): which pixels matter shows there."""
    start = images
    for factor in (3, 2):
        larger = replace(ball, eps=factor * ball.eps)
        start = larger.random_start(images, generator) if factor == 3 else larger.project(images, start)
        start = apgd(
            model,
            images,
            labels,
            larger,
            _never,
            loss=loss,
            steps=int(_OUTSIDE * steps),
            generator=generator,
            targets=targets,
            start=start,
            keep_going=True,
        )
    return ball.project(images, start)


def _never(raw: Tensor, labels: Tensor) -> Tensor:
    """Outside of the ball nothing is a success."""
    return torch.zeros(len(raw), dtype=torch.bool, device=labels.device)
