"""PGD with two goals: be wrong, and look harmless (Bryniarski et al. 2021, arXiv 2106.15023).

A weighted sum of both goals trades one for the other, and its steps undo each other. Here an image that is not
wrong yet goes straight for that; one that is goes on to look harmless, at right angles to the first goal's gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from training.attacks.ball import Ball
from training.attacks.base import Best, Look, usable
from training.attacks.criteria import Criterion
from training.attacks.frozen import frozen
from training.attacks.losses import Loss, margin


def orthogonal_pgd(
    model: Deployed,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    criterion: Criterion,
    *,
    harmless: Loss,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Wrong by the margin first, then as high in ``harmless`` as it gets while it stays wrong.

    Args:
        images: float32 [N, channels, H, W] in [0, 1]; labels int64 [N].
        harmless: the second goal, on raw logits; higher looks more harmless.

    Returns the best images found: successes before failures, then the most harmless.
    """
    wrong = margin(model.fold)
    index = torch.arange(len(images), device=images.device)
    with frozen(model):
        best = Best(images)
        current = ball.random_start(images, generator)
        for step in range(steps + 1):
            current = current.detach().requires_grad_(True)
            with torch.enable_grad():
                raw = model.classifier(current)
                margins, harm = wrong(raw, labels, labels), harmless(raw, labels, labels)
                to_wrong = usable(torch.autograd.grad(margins.sum(), current, retain_graph=True)[0])
                to_harmless = usable(torch.autograd.grad(harm.sum(), current)[0])
            found = current.detach()
            best.offer(index, found, Look(harm.detach(), criterion(raw.detach(), labels), None))
            is_wrong = (margins.detach() > 0).view(-1, 1, 1, 1)
            direction = torch.where(is_wrong, _orthogonal(to_harmless, to_wrong), to_wrong)
            size = ball.eps * (0.01 + 0.49 * (1 + math.cos(math.pi * step / steps)) / 2)
            current = ball.project(images, ball.ascend(found, direction, size))
        return best.images


def _orthogonal(goal: Tensor, other: Tensor) -> Tensor:
    """What ``goal`` has at right angles to ``other``; all of it where that is nothing."""
    flat, against = goal.flatten(1), other.flatten(1)
    along = (flat * against).sum(1, keepdim=True) / (against * against).sum(1, keepdim=True).clamp_min(1e-24)
    rest = flat - along * against
    nothing = rest.norm(dim=1, keepdim=True) < 1e-6 * flat.norm(dim=1, keepdim=True)
    return torch.where(nothing, flat, rest).view_as(goal)
