"""N-FGSM (de Jorge et al. 2022, arXiv 2202.01181, algorithm 1): one step from strong noise, for fast training."""

from __future__ import annotations

import torch
from torch import Tensor

from training.attacks.pgd import LossFunction

_NOISE = 2.0  # in eps; the paper's choice


def noisy(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Uniform noise of up to 2 eps on each pixel, in [0, 1]."""
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return (images + (2 * noise - 1) * _NOISE * eps).clamp(0, 1)


def step_once(loss: LossFunction, start: Tensor, eps: float) -> Tensor:
    """One step of eps up the gradient's sign.

    Not projected: the images are up to 3 eps away, as the method has it. For training only, never for evaluation.

    Args:
        loss: images [N, ...] to a loss per image [N].
        start: float [N, channels, H, W] in [0, 1], from `noisy`.
    """
    start = start.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(start).sum(), start)
    return (start.detach() + eps * gradient.sign()).clamp(0, 1)
