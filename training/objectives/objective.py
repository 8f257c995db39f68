"""The interface between the training loop and a method, with what most methods share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from training.attacks.ball import Ball
from training.attacks.inner import PGD, InnerAttack
from training.objectives.ducat import Ducat


@dataclass(frozen=True)
class Batch:
    """What a step trains on: float images [N, channels, H, W] in [0, 1], labels int64 [N], and its place in the run."""

    images: Tensor
    labels: Tensor
    epoch: int  # counted from 1
    step: int  # of the epoch, counted from 0


@dataclass(frozen=True)
class Objective(ABC):
    """A method, reading logits in one mode. A model maps images to raw logits.

    A run has two objectives: the plain one, and one with dummies from the dummy phase on (`TrainingStep.objective_of`).
    Unless a method says otherwise its inner attack is PGD on the cross entropy against the original label.
    """

    ducat: Ducat
    views: ClassVar[int] = 1  # augmented views of each image in a batch

    @classmethod
    def parameters(cls) -> tuple[str, ...]:
        """The settings that this method has besides those of every run."""
        return tuple(field.name for field in dataclasses.fields(cls) if field.name != "ducat")

    def inner_attack(self, ball: Ball, steps: int, step_size: float) -> InnerAttack:
        """What crafts the adversarial images, with the settings of the run."""
        return PGD(ball, steps, step_size)

    def reference(self, model: nn.Module, batch: Batch) -> Tensor | None:  # noqa: ARG002
        """Raw logits of the clean images, if the inner attack compares with them. Called in eval mode."""
        return None

    def attack_loss(self, logits: Tensor, batch: Batch, reference: Tensor | None) -> Tensor:  # noqa: ARG002
        """The inner attack's loss per image, [N], from raw logits of the perturbed images."""
        return self.ducat.cross_entropy(logits, batch.labels)

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, adversarial: Tensor) -> Tensor:
        """The scalar training loss; one forward pass in train mode. ``adversarial`` is like the batch's images."""


def forward_both(model: nn.Module, images: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
    """Raw logits of both halves in one pass, in float32 at least."""
    logits = in_float(model(torch.cat([images, adversarial])))
    return logits[: len(images)], logits[len(images) :]


def in_float(logits: Tensor) -> Tensor:
    """Logits of half precision as float32; losses are never computed in less."""
    return logits if logits.dtype == torch.float64 else logits.float()
