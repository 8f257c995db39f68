"""The inner attacks of training: PGD (Madry et al. 2018, arXiv 1706.06083), N-FGSM (de Jorge et al. 2022, arXiv
2202.01181) and the one step of guided adversarial training. Evaluation has attacks of its own, which are stronger and
never leave the ball.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from training.attacks.ball import Ball

LossFunction = Callable[[Tensor], Tensor]  # images [N, ...] to a loss per image [N]

_NEAR = 0.001  # standard deviation, in pixels
_N_FGSM_NOISE = 2.0  # in eps; the paper's choice


class InnerAttack(Protocol):
    """Crafts the images of an update. Images are float [N, channels, H, W] in [0, 1].

    Its two halves are apart because several processes draw the start of the whole batch alike, and then each of them
    goes up the loss from its own part.
    """

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Where it begins; like the images."""
        ...

    def ascend(self, loss: LossFunction, images: Tensor, start: Tensor) -> Tensor:
        """The crafted images, in [0, 1]; no graph is kept."""
        ...


@dataclass(frozen=True)
class PGD:
    """``steps`` steps of ``step_size`` from a random point of the ball, the last iterate."""

    ball: Ball
    steps: int
    step_size: float

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.ball.random_start(images, generator)

    def ascend(self, loss: LossFunction, images: Tensor, start: Tensor) -> Tensor:
        return ascend_loss(loss, images, self.ball, start=start, steps=self.steps, step_size=self.step_size)


class NearPGD(PGD):
    """PGD from beside the images: at an image itself the gradient of a divergence from it is zero."""

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        return self.ball.project(images, images + _NEAR * noise)


@dataclass(frozen=True)
class NFGSM:
    """One step of eps up the gradient's sign, from uniform noise of up to 2 eps on each pixel (algorithm 1).

    Not projected: the images are up to 3 eps away, as the method has it. For training only, never for evaluation.
    """

    eps: float

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        return (images + (2 * noise - 1) * _N_FGSM_NOISE * self.eps).clamp(0, 1)

    def ascend(self, loss: LossFunction, images: Tensor, start: Tensor) -> Tensor:  # noqa: ARG002
        gradient = _input_gradient(loss, start.detach())
        return (start.detach() + self.eps * gradient.sign()).clamp(0, 1)


@dataclass(frozen=True)
class CornerFGSM:
    """One step of eps up the gradient's sign, from eps / 2 or -eps / 2 on each pixel, projected (linf only).

    The attack of guided adversarial training (Sriramanan et al., NeurIPS 2020, algorithm 2).
    """

    ball: Ball

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        sign = torch.where(noise < 0.5, -1.0, 1.0).to(images.dtype)
        return self.ball.project(images, images + sign * self.ball.eps / 2)

    def ascend(self, loss: LossFunction, images: Tensor, start: Tensor) -> Tensor:
        return ascend_loss(loss, images, self.ball, start=start, steps=1, step_size=self.ball.eps)


@dataclass(frozen=True)
class NoAttack:
    """Crafts nothing: the images themselves, of training without adversarial images."""

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        return images

    def ascend(self, loss: LossFunction, images: Tensor, start: Tensor) -> Tensor:  # noqa: ARG002
        return images


def ascend_loss(
    loss: LossFunction,
    images: Tensor,
    ball: Ball,
    *,
    start: Tensor,
    steps: int,
    step_size: float,
) -> Tensor:
    """``steps`` steps up ``loss`` from ``start``, the last iterate.

    Args:
        loss: images [N, ...] to a loss per image [N].
        images: float [N, channels, H, W] in [0, 1].
        start: where to begin, in the ball.

    Returns images in the ball and in [0, 1]; no graph is kept.
    """
    adversarial = start.detach()
    for _ in range(steps):
        gradient = _input_gradient(loss, adversarial)
        adversarial = ball.project(images, ball.ascend(adversarial.detach(), gradient, step_size))
    return adversarial


def _input_gradient(loss: LossFunction, images: Tensor) -> Tensor:
    images.requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(images).sum(), images)
    return gradient
