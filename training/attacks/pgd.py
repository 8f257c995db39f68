"""The PGD of evaluation (Madry et al. 2018, arXiv 1706.06083); that of training is in `inner.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from training.attacks.base import Attack, Best, Task, value, value_and_grad
from training.attacks.frozen import frozen
from training.attacks.losses import cross_entropy


@dataclass(frozen=True)
class PGD(Attack):
    """The evaluation attack: cross entropy of the deployed logits; stops for an image once it succeeds.

    Args:
        step_size: in pixels; a quarter of eps unless given.
    """

    name: ClassVar[str] = "pgd"
    steps: int = 20
    step_size: float | None = None

    def __call__(self, task: Task) -> Tensor:
        """Returns the best images found; the clean ones where nothing is better."""
        model, images, labels, ball = task.model, task.images, task.labels, task.ball
        loss, criterion = cross_entropy(model.fold), task.criterion
        step_size = ball.eps / 4 if self.step_size is None else self.step_size
        with frozen(model):
            best = Best(images)
            index = torch.arange(len(images), device=images.device)
            best.offer(index, images, value(model, images, labels, labels, loss, criterion))
            current = ball.random_start(images, task.generator)
            for step in range(self.steps + 1):
                keep = ~best.success[index]
                index, current = index[keep], current[keep]
                if len(index) == 0:
                    break
                own = labels[index]
                if step == self.steps:
                    best.offer(index, current, value(model, current, own, own, loss, criterion))
                    break
                evaluated, gradient = value_and_grad(model, current, own, own, loss, criterion)
                best.offer(index, current, evaluated)
                current = ball.project(images[index], ball.ascend(current, gradient, step_size))
            return best.images
