"""The PGD of evaluation (Madry et al. 2018, arXiv 1706.06083); that of training is in `inner.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from training.attacks.ball import Ball
from training.attacks.base import Best, look
from training.attacks.criteria import Criterion
from training.attacks.frozen import frozen
from training.attacks.losses import cross_entropy


def pgd(
    model: Deployed,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    criterion: Criterion,
    *,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
) -> Tensor:
    """The evaluation attack: cross entropy of the deployed logits; stops for an image once it succeeds.

    Args:
        images: float32 [N, channels, H, W] in [0, 1]; labels int64 [N].
        step_size: in pixels; a quarter of eps unless given.

    Returns the best images found; the clean ones where nothing is better.
    """
    loss = cross_entropy(model.fold)
    step_size = ball.eps / 4 if step_size is None else step_size
    with frozen(model):
        best = Best(images)
        index = torch.arange(len(images), device=images.device)
        best.offer(index, images, look(model, images, labels, labels, loss, criterion, gradient=False))
        current = ball.random_start(images, generator)
        for step in range(steps + 1):
            keep = ~best.success[index]
            index, current = index[keep], current[keep]
            if len(index) == 0:
                break
            mine = labels[index]
            seen = look(model, current, mine, mine, loss, criterion, gradient=step < steps)
            best.offer(index, current, seen)
            if seen.gradient is not None:
                current = ball.project(images[index], ball.ascend(current, seen.gradient, step_size))
        return best.images
