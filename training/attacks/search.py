"""What all gradient attacks share: one forward pass gives loss, gradient and the deployed decision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.recovery import fold_logits
from training.attacks.losses import Loss


class Look(NamedTuple):
    """One evaluation of the model at some images."""

    loss: Tensor  # [N]
    wrong: Tensor  # bool [N]: the deployed decision is not the label
    gradient: Tensor | None  # like the images; None where it was not asked for


def look(
    model: Deployed, images: Tensor, labels: Tensor, targets: Tensor, loss: Loss, *, gradient: bool = True
) -> Look:
    """Evaluate ``loss`` on raw logits and the decision on folded ones, with the gradient if asked for."""
    images = images.detach().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        raw = model.classifier(images)
        values = loss(raw, labels, targets)
    found = torch.autograd.grad(values.sum(), images)[0] if gradient else None
    with torch.no_grad():
        wrong = ~right(fold_logits(raw, model.fold), labels)
    return Look(values.detach(), wrong, found)


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the decision is the label, bool [N]. NaN logits decide nothing: they are wrong, never robust."""
    return (logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)


class Best:
    """The best image found for each example: wrong ones before right ones, then the higher loss."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        self.loss = torch.full((len(images),), -torch.inf, device=images.device)
        self.wrong = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def offer(self, index: Tensor, candidates: Tensor, seen: Look) -> None:
        """Take those of ``candidates`` (for the examples ``index``) that are better than what is there."""
        loss = seen.loss.nan_to_num(nan=-torch.inf)
        better = (seen.wrong & ~self.wrong[index]) | (
            (seen.wrong == self.wrong[index]) & (loss > self.loss[index])
        )
        chosen = index[better]
        self.images[chosen] = candidates[better].detach()
        self.loss[chosen] = loss[better]
        self.wrong[chosen] = seen.wrong[better]
