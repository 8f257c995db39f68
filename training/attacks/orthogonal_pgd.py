"""PGD with two goals: be wrong, and evade a detector (Bryniarski et al. 2021, arXiv 2106.15023).

A weighted sum of both goals trades one for the other, and its steps undo each other. Here an image that is not
wrong yet goes straight for that; one that is goes on to evade, at right angles to the first goal's gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from training.attacks.base import Attack, Best, Evaluated, Task, finite_gradient
from training.attacks.frozen import frozen
from training.attacks.losses import Loss, margin


@dataclass(frozen=True)
class OrthogonalPGD(Attack):
    """Wrong by the margin first, then as high in ``evasion_loss`` as it gets while it stays wrong.

    Args:
        evasion_loss: the second goal, on raw logits; the higher, the less a detector notices.
    """

    name: ClassVar[str] = "orthogonal-pgd"
    evasion_loss: Loss
    steps: int = 100

    def __call__(
        self,
        task: Task,
        *,
        start: Tensor | None = None,
    ) -> Tensor:
        """Attack a batch, from ``start`` in the ball, or from a random point of it.

        Returns the best images found: successes before failures, then those of the highest evasion loss.
        """
        model, images, labels, ball = task.model, task.images, task.labels, task.ball
        margin_loss = margin(model.fold)
        index = torch.arange(len(images), device=images.device)
        with frozen(model):
            best = Best(images)
            current = ball.random_start(images, task.generator) if start is None else start
            for step in range(self.steps + 1):
                current = current.detach().requires_grad_(True)
                with torch.enable_grad():
                    raw = model.classifier(current)
                    margins = margin_loss(raw, labels, labels)
                    evasion = self.evasion_loss(raw, labels, labels)
                    to_wrong = torch.autograd.grad(margins.sum(), current, retain_graph=True)[0]
                    to_evasion = torch.autograd.grad(evasion.sum(), current)[0]
                to_wrong, to_evasion = finite_gradient(to_wrong), finite_gradient(to_evasion)
                found = current.detach()
                best.offer(index, found, Evaluated(evasion.detach(), task.criterion(raw.detach(), labels)))
                is_wrong = (margins.detach() > 0).view(-1, 1, 1, 1)
                direction = torch.where(is_wrong, _orthogonal(to_evasion, to_wrong), to_wrong)
                size = ball.eps * (0.01 + 0.49 * (1 + math.cos(math.pi * step / self.steps)) / 2)
                current = ball.project(images, ball.ascend(found, direction, size))
            return best.images


def _orthogonal(goal: Tensor, other: Tensor) -> Tensor:
    """What ``goal`` has at right angles to ``other``; all of it where that is nothing."""
    flat, against = goal.flatten(1), other.flatten(1)
    along = (flat * against).sum(1, keepdim=True) / (against * against).sum(1, keepdim=True).clamp_min(1e-24)
    rest = flat - along * against
    nothing = rest.norm(dim=1, keepdim=True) < 1e-6 * flat.norm(dim=1, keepdim=True)
    return torch.where(nothing, flat, rest).view_as(goal)
