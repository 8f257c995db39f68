"""The interface between the training loop and a method, with what most methods share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ducat_serve.threat_model import Norm
from training.attacks.ball import Ball
from training.attacks.inner import NFGSM, PGD, InnerAttack
from training.objectives.ducat import DUMMY_WEIGHT_ADVERSARIAL, DUMMY_WEIGHT_BENIGN, Ducat

_OF_EVERY_METHOD = ("ducat", "clean_share")


@dataclass(frozen=True)
class Batch:
    """What a step trains on: float images [N, channels, H, W] in [0, 1], labels int64 [N], and its place in the run."""

    images: Tensor
    labels: Tensor
    epoch: int  # counted from 1
    step: int  # of the run, counted from 0


@dataclass(frozen=True)
class Objective(ABC):
    """A method, reading logits in one mode. A model maps images to raw logits.

    A run has two objectives: the plain one, and one with dummies from the dummy phase on (`TrainingStep.objective_of`).
    Unless a method says otherwise its inner attack is PGD on the cross entropy against the original label.

    ``clean_share`` is how much of the classification loss clean images have, in [0, 1]; None leaves it to the method.
    """

    ducat: Ducat
    clean_share: float | None = None
    views: ClassVar[int] = 1  # augmented views of each image in a batch
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")  # that its inner attack is made for
    attacks_in_one_step: ClassVar[bool] = False  # by an attack of its own, in every epoch
    plain_clean_share: ClassVar[float] = 0.0  # of the published method, without dummies

    @classmethod
    def parameters(cls) -> tuple[str, ...]:
        """The settings that this method has besides those of every method."""
        return tuple(field.name for field in dataclasses.fields(cls) if field.name not in _OF_EVERY_METHOD)

    @classmethod
    def default(cls, parameter: str) -> Any:
        """The value of one of its parameters that the method was published with."""
        return next(field.default for field in dataclasses.fields(cls) if field.name == parameter)

    @property
    def share(self) -> float:
        """How much of the classification loss clean images have; with dummies, half."""
        if self.clean_share is not None:
            return self.clean_share
        return 0.5 if self.ducat.trains_dummies else self.plain_clean_share

    def inner_attack(self, ball: Ball, steps: int, step_size: float) -> InnerAttack:
        """What crafts the adversarial images, with the settings of the run."""
        return PGD(ball, steps, step_size)

    def one_step_attack(self, ball: Ball) -> InnerAttack:
        """What crafts them in one step, where the method or the user asks for that."""
        return NFGSM(ball.eps)

    def reference(self, model: nn.Module, batch: Batch) -> Tensor | None:  # noqa: ARG002
        """Raw logits of the clean images, if the inner attack compares with them. Called in eval mode."""
        return None

    def attack_loss(self, logits: Tensor, batch: Batch, reference: Tensor | None) -> Tensor:  # noqa: ARG002
        """The inner attack's loss per image, [N], from raw logits of the perturbed images."""
        return self.ducat.cross_entropy(logits, batch.labels)

    def classification(self, clean: Tensor | None, adversarial: Tensor, labels: Tensor) -> Tensor:
        """The classification loss over both halves, a scalar: ``share`` of it is the mean over clean images.

        Args:
            clean: raw logits of the clean images; None where their share is 0.
        """
        if self.share == 0:
            return self.ducat.classification(adversarial, labels, DUMMY_WEIGHT_ADVERSARIAL).mean()
        assert clean is not None
        if self.share == 1:
            return self.ducat.classification(clean, labels, DUMMY_WEIGHT_BENIGN).mean()
        dummy_weight = torch.full((2 * len(clean),), DUMMY_WEIGHT_BENIGN, device=clean.device)
        dummy_weight[len(clean) :] = DUMMY_WEIGHT_ADVERSARIAL
        logits, labels = torch.cat([clean, adversarial]), torch.cat([labels, labels])
        losses = self.ducat.classification(logits, labels, dummy_weight)
        if self.share == 0.5:
            return losses.mean()
        first, second = losses.chunk(2)
        return self.share * first.mean() + (1 - self.share) * second.mean()

    def forward_classified(
        self, model: nn.Module, batch: Batch, adversarial: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Raw logits of both halves; None for clean images that do not count."""
        if self.share == 0:
            return None, in_float(model(adversarial))
        return forward_both(model, batch.images, adversarial)

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
