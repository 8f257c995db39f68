"""What all attacks share: what an attack is, one evaluation of the model, and the best image so far."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.errors import UsageError
from ducat_serve.spec import Fold
from training.attacks.ball import Ball
from training.attacks.criteria import Criterion
from training.attacks.losses import Loss

Settings = dict[str, int | float | str]


@dataclass(frozen=True)
class TargetModel:
    """What attacks need to know beforehand of the model that they are made for."""

    fold: Fold
    num_classes: int
    surrogate: Deployed | None = None  # the model's own pre-dummy weights, or the checkpoint of an export


@dataclass(frozen=True)
class Task:
    """A batch to be attacked: which model and images, where to look, and what for.

    Args:
        model: the deployed function. Its weights get no gradient, and modes are as before when an attack returns.
        images: float32 [N, channels, H, W] in [0, 1].
        labels: int64 [N].
        ball: where to look; everything that an attack returns is inside, and inside [0, 1].
        criterion: what counts as success.
        generator: all randomness comes from it.
    """

    model: Deployed
    images: Tensor
    labels: Tensor
    ball: Ball
    criterion: Criterion
    generator: torch.Generator

    def only(self, index: Tensor) -> Task:
        """The same for some of the images: int64 [M], or a mask bool [N]."""
        return replace(self, images=self.images[index], labels=self.labels[index])


@dataclass(frozen=True)
class Attack(ABC):
    """Looks for images in the ball that meet the criterion. Its fields are its hyperparameters.

    ``needs_gradient``: of the attacked model; an exported file has none.
    ``needs_dummies``: it means nothing against a model without dummies.
    ``knows_pairs``: it knows the pairs of classes and dummies, not only the deployed logits.
    """

    needs_gradient: ClassVar[bool] = True
    needs_dummies: ClassVar[bool] = False
    knows_pairs: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What reports and the command line call it; its random numbers follow from it."""

    @abstractmethod
    def __call__(self, task: Task) -> Tensor:
        """Attack a batch. Returns the best image of each search by the criterion, never its last."""

    def applies(self, target: TargetModel) -> bool:
        """Whether a suite runs it: it can, and it is not the same as another attack on this model."""
        return not (self.needs_dummies and target.fold == "none")

    def fitted(self, target: TargetModel) -> Self:
        """The attack with the hyperparameters that suit the model. Raises UsageError where it cannot run on it."""
        if self.needs_dummies and target.fold == "none":
            raise UsageError(
                f"{self.name} attacks the fold, and this model has no dummies.", "choose apgd-ce"
            )
        return self

    def settings(self) -> Settings:
        """The hyperparameters as a report shows them: functions by name, and nothing for what is not set."""
        return {
            name: value if isinstance(value, int | float | str) else str(value.__name__)
            for name, value in asdict(self).items()
            if value is not None
        }


class Evaluated(NamedTuple):
    """The model at some images."""

    loss: Tensor  # [N]
    success: Tensor  # bool [N]


def value_and_grad(
    model: Deployed, images: Tensor, labels: Tensor, targets: Tensor, loss: Loss, criterion: Criterion
) -> tuple[Evaluated, Tensor]:
    """Loss and criterion, and the loss's gradient (like the images), from one forward and one backward pass."""
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        raw = model.classifier(images)
        values = loss(raw, labels, targets)
        gradient = torch.autograd.grad(values.sum(), images)[0]
    return Evaluated(values.detach(), criterion(raw.detach(), labels)), finite_gradient(gradient)


@torch.no_grad()
def value(
    model: Deployed, images: Tensor, labels: Tensor, targets: Tensor, loss: Loss, criterion: Criterion
) -> Evaluated:
    """Loss and criterion from one forward pass; works where a model has no gradient."""
    raw = model.classifier(images)
    return Evaluated(loss(raw, labels, targets), criterion(raw, labels))


def finite_gradient(gradient: Tensor) -> Tensor:
    """NaN and infinity, with which an image would leave the ball, as 0; and rows that can be written to."""
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).contiguous()


def nonzero(gradient: Tensor) -> Tensor:
    """Which images have a gradient that leads anywhere, bool [N]; a step along 0 moves nothing, in any norm."""
    return gradient.flatten(1).any(dim=1)


class Best:
    """The best image found for each example: successes before failures, then the higher loss."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        self.loss = torch.full((len(images),), -torch.inf, device=images.device)
        self.success = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def offer(self, index: Tensor, candidates: Tensor, evaluated: Evaluated) -> None:
        """Take those of ``candidates`` (for the examples ``index``) that are better than what is there."""
        loss = evaluated.loss.nan_to_num(nan=-torch.inf)
        better = (evaluated.success & ~self.success[index]) | (
            (evaluated.success == self.success[index]) & (loss > self.loss[index])
        )
        chosen = index[better]
        self.images[chosen] = candidates[better].detach()
        self.loss[chosen] = loss[better]
        self.success[chosen] = evaluated.success[better]
