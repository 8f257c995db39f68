"""Output-diversified starts (Tashiro, Song and Ermon 2020, arXiv 2003.06878): restarts that lead to different places.

Random points of a ball look alike to a network, and searches from them run into the same dead ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.attacks.base import Task, finite_gradient

_STEPS = 2  # of size eps; the paper's setting for white-box attacks


def diversified_start(task: Task) -> Tensor:
    """Where `APGD` may begin: the images moved up a random direction in the space of raw logits, each its own.

    Returns images of the same shape, in the ball.
    """
    images, ball, generator = task.images, task.ball, task.generator
    current = ball.random_start(images, generator)
    direction: Tensor | None = None
    for _ in range(_STEPS):
        current.requires_grad_(True)
        with torch.enable_grad():
            raw = task.model.classifier(current)
            if direction is None:
                direction = torch.rand(raw.shape, generator=generator, device=raw.device) * 2 - 1
            (gradient,) = torch.autograd.grad((direction * raw).sum(), current)
        current = ball.project(images, ball.ascend(current.detach(), finite_gradient(gradient), ball.eps))
    return current
