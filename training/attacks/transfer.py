"""Transfer: images made on another model, the surrogate, and shown to this one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from training.attacks.apgd import apgd
from training.attacks.ball import Ball
from training.attacks.base import Best, look
from training.attacks.criteria import Criterion, misclassified
from training.attacks.frozen import frozen
from training.attacks.losses import cross_entropy, margin


def transfer(
    model: Deployed,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    criterion: Criterion,
    *,
    surrogate: Deployed,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """APGD on the surrogate, to the highest cross entropy and to the highest margin; the better of both.

    The model itself is only asked for scores, two times per image. The surrogate's own decision stops nothing:
    a higher loss transfers better.
    """
    free = replace(ball, eight_bit=False)  # steps on the surrogate may be finer than what is shown
    best = Best(images)
    index = torch.arange(len(images), device=images.device)
    judge = margin(model.fold)
    for loss in (cross_entropy(surrogate.fold), margin(surrogate.fold)):
        found = apgd(
            surrogate,
            images,
            labels,
            free,
            misclassified(surrogate.fold),
            loss=loss,
            steps=steps,
            generator=generator,
            keep_going=True,
        )
        with frozen(model):
            shown = ball.project(images, found)
            best.offer(index, shown, look(model, shown, labels, labels, judge, criterion, gradient=False))
    return best.images
