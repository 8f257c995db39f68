"""Projected gradient ascent (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.attacks.ball import Ball
from training.attacks.frozen import frozen

LossFunction = Callable[[Tensor], Tensor]


def ascend_loss(
    loss: LossFunction,
    images: Tensor,
    ball: Ball,
    *,
    steps: int,
    step_size: float,
    generator: torch.Generator,
) -> Tensor:
    """The training attack: random start, ``steps`` steps up ``loss``, the last iterate.

    Args:
        loss: images [N, ...] to a loss per image [N].
        images: float [N, channels, H, W] in [0, 1].

    Returns images in the ball and in [0, 1]; no graph is kept.
    """
    adversarial = ball.random_start(images, generator)
    for _ in range(steps):
        adversarial.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(adversarial).sum(), adversarial)
        adversarial = ball.project(images, ball.ascend(adversarial.detach(), gradient, step_size))
    return adversarial


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    steps: int,
    step_size: float,
    generator: torch.Generator,
) -> Tensor:
    """The evaluation attack: cross entropy of the deployed logits, best iterate by the deployed decision.

    An iterate that the model gets wrong wins over any it gets right; among the others the highest loss
    wins. The model must return C logits: it is the deployed function that is attacked and judged.

    Args:
        model: images [N, channels, H, W] in [0, 1] to C logits.
        labels: int64 [N].

    Returns the best images found, the clean ones where nothing is better.
    """
    with frozen(model):
        best, best_score = images.clone(), torch.full((len(images),), -torch.inf, device=images.device)

        def keep_better(candidates: Tensor, logits: Tensor, loss: Tensor) -> None:
            nonlocal best, best_score
            # Success outranks any loss: cross entropy is finite, so add infinity where the model is wrong.
            score = torch.where(logits.argmax(dim=1) == labels, loss, torch.inf)
            better = score > best_score
            best = torch.where(better.view(-1, 1, 1, 1), candidates, best)
            best_score = torch.where(better, score, best_score)

        with torch.no_grad():
            logits = model(images)
            keep_better(images, logits, F.cross_entropy(logits, labels, reduction="none"))
        adversarial = ball.random_start(images, generator)
        for step in range(steps + 1):
            adversarial.requires_grad_(True)
            with torch.enable_grad():
                logits = model(adversarial)
                loss = F.cross_entropy(logits, labels, reduction="none")
                gradient = torch.autograd.grad(loss.sum(), adversarial)[0] if step < steps else None
            adversarial = adversarial.detach()
            keep_better(adversarial, logits.detach(), loss.detach())
            if gradient is not None:
                adversarial = ball.project(images, ball.ascend(adversarial, gradient, step_size))
        return best
