"""Restarts that lead to different places, then random squares from the best of them.

Where gradients mislead (networks trained with large eps on small images, say), restarts from random points run
into the same dead ends. Output-diversified starts (Tashiro, Song and Ermon 2020, arXiv 2003.06878) begin where a
random combination of logits is high. Random squares (see `square`) from the best place so far need no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from training.attacks.apgd import apgd
from training.attacks.ball import Ball
from training.attacks.base import Best, look, usable
from training.attacks.criteria import Criterion
from training.attacks.frozen import frozen
from training.attacks.losses import margin, pair_margin
from training.attacks.square import square

_DIVERSIFYING_STEPS = 2  # of size eps; the paper's setting for white-box attacks


def diversified_square(
    model: Deployed,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    criterion: Criterion,
    *,
    restarts: int,
    steps: int,
    queries: int,
    generator: torch.Generator,
) -> Tensor:
    """``restarts`` short APGD runs on the margin from diversified starts, then ``queries`` random squares.

    With dummies every other run uses the pair margin. Returns the best images found, as `apgd` does.
    """
    best = Best(images)
    judge = margin(model.fold)
    for restart in range(restarts):
        index = (~best.success).nonzero().squeeze(1)
        if len(index) == 0:
            return best.images
        loss = pair_margin(model.fold, 1) if restart % 2 else judge
        mine = labels[index]
        with frozen(model):
            start = _diversified(model, images[index], ball, generator)
            found = apgd(
                model,
                images[index],
                mine,
                ball,
                criterion,
                loss=loss,
                steps=steps,
                generator=generator,
                start=start,
            )
            best.offer(index, found, look(model, found, mine, mine, judge, criterion, gradient=False))
    index = (~best.success).nonzero().squeeze(1)
    best.images[index] = square(
        model,
        images[index],
        labels[index],
        ball,
        criterion,
        queries=queries,
        generator=generator,
        start=best.images[index],
    )
    return best.images


def _diversified(model: Deployed, images: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
    """Go up a random direction in the space of raw logits, each image its own."""
    current = ball.random_start(images, generator)
    direction: Tensor | None = None
    for _ in range(_DIVERSIFYING_STEPS):
        current.requires_grad_(True)
        with torch.enable_grad():
            raw = model.classifier(current)
            if direction is None:
                direction = torch.rand(raw.shape, generator=generator, device=raw.device) * 2 - 1
            (gradient,) = torch.autograd.grad((direction * raw).sum(), current)
        current = ball.project(images, ball.ascend(current.detach(), usable(gradient), ball.eps))
    return current
