"""The interface between the training loop and a method, with what most methods share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from training.attacks.ball import Ball
from training.objectives.ducat import Ducat

_NOISE = 0.001


@dataclass(frozen=True)
class Objective(ABC):
    """A method. Images are float [N, channels, H, W] in [0, 1]; a model returns raw logits.

    Unless a method says otherwise its inner attack starts at a random point of the ball and maximises cross
    entropy against the original label.
    """

    ducat: Ducat
    views: ClassVar[int] = 1  # augmented views of each image in a batch

    def start(self, images: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
        """Where the inner attack begins."""
        return ball.random_start(images, generator)

    def reference(self, model: nn.Module, images: Tensor) -> Tensor | None:  # noqa: ARG002
        """Raw logits of the clean images, if the inner attack compares with them. Called in eval mode."""
        return None

    def attack_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        reference: Tensor | None,  # noqa: ARG002
        dummy_phase: bool,
    ) -> Tensor:
        """The inner attack's loss per image, [N], from raw logits of the perturbed images."""
        return self.ducat.cross_entropy(logits, labels, dummy_phase)

    @abstractmethod
    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, dummy_phase: bool
    ) -> Tensor:
        """The scalar training loss; one forward pass in train mode."""


def near(images: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
    """Beside the images: at an image itself the gradient of a divergence from it is zero."""
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return ball.project(images, images + _NOISE * noise)


def forward_both(model: nn.Module, images: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
    """Raw logits of both halves in one pass, in float32 at least."""
    logits = in_float(model(torch.cat([images, adversarial])))
    return logits[: len(images)], logits[len(images) :]


def in_float(logits: Tensor) -> Tensor:
    """Logits of half precision as float32; losses are never computed in less."""
    return logits if logits.dtype == torch.float64 else logits.float()
