"""What all attacks share: one forward pass gives loss, gradient and success; the best image is kept."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from training.attacks.ball import Ball
from training.attacks.criteria import Criterion
from training.attacks.losses import Loss


class Attack(Protocol):
    """Looks for images in the ball that meet the criterion.

    Args:
        model: the deployed function. Its weights get no gradient, and modes are as before when this returns.
        images: float32 [N, channels, H, W] in [0, 1]; labels int64 [N].
        ball: where to look; everything returned is inside, and inside [0, 1].
        criterion: what counts as success.
        generator: all randomness comes from it.

    Returns the best image of each search by the criterion, never its last.
    """

    def __call__(
        self,
        model: Deployed,
        images: Tensor,
        labels: Tensor,
        ball: Ball,
        criterion: Criterion,
        *,
        generator: torch.Generator,
    ) -> Tensor: ...


class Look(NamedTuple):
    """One evaluation of the model at some images."""

    loss: Tensor  # [N]
    success: Tensor  # bool [N]
    gradient: Tensor | None  # like the images; None where it was not asked for


def look(
    model: Deployed,
    images: Tensor,
    labels: Tensor,
    targets: Tensor,
    loss: Loss,
    criterion: Criterion,
    *,
    gradient: bool = True,
) -> Look:
    """Evaluate loss and criterion on raw logits, with the gradient if asked for."""
    images = images.detach().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        raw = model.classifier(images)
        values = loss(raw, labels, targets)
        total = values.sum()
    found = usable(torch.autograd.grad(total, images)[0]) if gradient else None
    return Look(values.detach(), criterion(raw.detach(), labels), found)


def usable(gradient: Tensor) -> Tensor:
    """NaN and infinity, with which an image would leave the ball, as 0; and rows that can be written to."""
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).contiguous()


class Best:
    """The best image found for each example: successes before failures, then the higher loss."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        self.loss = torch.full((len(images),), -torch.inf, device=images.device)
        self.success = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def offer(self, index: Tensor, candidates: Tensor, seen: Look) -> None:
        """Take those of ``candidates`` (for the examples ``index``) that are better than what is there."""
        loss = seen.loss.nan_to_num(nan=-torch.inf)
        better = (seen.success & ~self.success[index]) | (
            (seen.success == self.success[index]) & (loss > self.loss[index])
        )
        chosen = index[better]
        self.images[chosen] = candidates[better].detach()
        self.loss[chosen] = loss[better]
        self.success[chosen] = seen.success[better]
