"""Many short searches on the images that may still fall: rounds that begin with those closest to the boundary.

After a first strong attack most images are far from the boundary, and no later attack moves them over it; what falls
late falls from the closest third. So a round goes through the survivors in the order of the best margin found so far,
and ends where a share of them held in a row. Where images go on falling it goes on, to the last of them: the cost
follows from the model. To discard the hardest images is an idea of the Adaptive Auto Attack (Liu et al., CVPR 2022,
arXiv 2203.05154); here none is discarded for good, because every round begins anew with all survivors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.spec import Fold
from training.attacks.apgd import APGD
from training.attacks.ball import Ball
from training.attacks.base import Attack, Best, TargetModel, value
from training.attacks.criteria import Criterion
from training.attacks.diversified import diversified_start
from training.attacks.frozen import frozen
from training.attacks.losses import (
    LossOfFold,
    dlr,
    lse_cross_entropy,
    margin,
    pair_margin,
    targeted_dlr,
    targeted_margin,
)
from training.attacks.square import Square

_BLOCK = 1 / 8  # share of the survivors that are attacked at once
_HELD = 2  # blocks without a success, one after the other, that end a round
_FEWEST = 8  # images in a block

Search = Callable[[Tensor], Tensor]  # examples, int64 [M], to the images found for them, [M, channels, H, W]


@dataclass(frozen=True)
class ClosestFirst(Attack):
    """Rounds of APGD on margins, at targets and from diversified starts, then random squares from the best image.

    Every image is attacked on the margin and at its best wrong class; the other rounds begin with the closest images
    and end early. With dummies each target is tried as t and as its dummy t + C, and rounds on `losses.pair_margin`
    push both logits of the label's pair down.

    Args:
        untargeted, targeted: the losses, DLR unless there are too few classes.
        steps: of each APGD run.
        targets: how many wrong classes, by their logits at the best image so far; 9 as in AutoAttack.
        restarts: rounds from output-diversified starts that must break nothing, one after the other, before it ends.
        queries: random squares for each image.
    """

    name: ClassVar[str] = "closest-first"
    knows_pairs: ClassVar[bool] = True
    untargeted: LossOfFold = dlr
    targeted: LossOfFold = targeted_dlr
    steps: int = 50
    targets: int = 9
    restarts: int = 6
    queries: int = 500

    def fitted(self, target: TargetModel) -> Self:
        """DLR needs 3 classes, targeted DLR 4."""
        if target.num_classes >= 4:
            return self
        return replace(self, untargeted=margin, targeted=targeted_margin)

    def __call__(
        self,
        model: Deployed,
        images: Tensor,
        labels: Tensor,
        ball: Ball,
        criterion: Criterion,
        *,
        generator: torch.Generator,
    ) -> Tensor:
        """Returns the best images by the criterion, then by the margin of the deployed logits."""
        survivors = _Survivors(model, images, labels, ball, criterion, generator, self.steps)
        with frozen(model):
            survivors.offer(torch.arange(len(images), device=images.device), images)
            survivors.attack(survivors.at_loss(margin), everyone=True)
            with torch.no_grad():
                classes = model(images[:1]).shape[1]
            for rank in range(min(self.targets, classes - 1)):
                for dummy in (False,) if model.fold == "none" else (False, True):
                    survivors.attack(survivors.at_target(self.targeted, rank, dummy), everyone=rank == 0)
            for loss in _other_losses(model.fold, self.untargeted):
                survivors.attack(survivors.at_loss(loss))
            held = rounds = 0
            while held < self.restarts and not bool(survivors.best.success.all()):
                loss = _PAIR if rounds % 2 else margin
                fallen = survivors.attack(survivors.at_loss(loss, diversified=True))
                held, rounds = 0 if fallen else held + 1, rounds + 1
            survivors.attack(survivors.by_squares(self.queries))
        return survivors.best.images


_PAIR = partial(pair_margin, temperature=1)  # the margin itself without dummies


def _other_losses(fold: Fold, untargeted: LossOfFold) -> list[LossOfFold]:
    """What is maximised beside the margin."""
    if fold == "none":
        return [untargeted]
    return [untargeted, lse_cross_entropy, *(partial(pair_margin, temperature=t) for t in (0, 1, 4))]


@dataclass
class _Survivors:
    """The examples of a batch, the best image of each so far, and the searches for better ones."""

    model: Deployed
    images: Tensor
    labels: Tensor
    ball: Ball
    criterion: Criterion
    generator: torch.Generator
    steps: int  # of each APGD run

    def __post_init__(self) -> None:
        self.best = Best(self.images)

    def attack(self, search: Search, *, everyone: bool = False) -> int:
        """One round over the survivors, the closest first; returns how many fell.

        It ends where `_HELD` blocks in a row held, unless ``everyone`` is attacked.
        """
        index = (~self.best.success).nonzero().squeeze(1)
        index = index[self.best.loss[index].argsort(descending=True, stable=True)]
        size = len(index) if everyone else max(_FEWEST, math.ceil(_BLOCK * len(index)))
        fallen = held = 0
        for start in range(0, len(index), max(size, 1)):
            if held == _HELD:
                break
            block = index[start : start + size]
            self.offer(block, search(block))
            fell = int(self.best.success[block].sum())
            fallen, held = fallen + fell, 0 if fell else held + 1
        return fallen

    def offer(self, index: Tensor, found: Tensor) -> None:
        """Keep ``found`` where it is better than the best image so far."""
        own = self.labels[index]
        evaluated = value(self.model, found, own, own, margin(self.model.fold), self.criterion)
        self.best.offer(index, found, evaluated)

    def at_loss(self, loss: LossOfFold, *, diversified: bool = False) -> Search:
        """APGD on a loss without targets, from a random start or an output-diversified one."""

        def search(index: Tensor) -> Tensor:
            images = self.images[index]
            start = diversified_start(self.model, images, self.ball, self.generator) if diversified else None
            return self._apgd(loss, index, self.labels[index], start)

        return search

    def at_target(self, loss: LossOfFold, rank: int, dummy: bool) -> Search:
        """APGD at the wrong class that is number ``rank`` at the best image so far, or at its dummy."""

        def search(index: Tensor) -> Tensor:
            with torch.no_grad():
                logits = self.model(self.best.images[index])
            wrong = logits.scatter(1, self.labels[index].unsqueeze(1), -torch.inf)
            target = wrong.argsort(dim=1, descending=True)[:, rank]
            return self._apgd(loss, index, target + logits.shape[1] if dummy else target, None)

        return search

    def by_squares(self, queries: int) -> Search:
        """Random squares from the best image so far."""

        def search(index: Tensor) -> Tensor:
            return Square(queries)(
                self.model,
                self.images[index],
                self.labels[index],
                self.ball,
                self.criterion,
                generator=self.generator,
                start=self.best.images[index],
            )

        return search

    def _apgd(self, loss: LossOfFold, index: Tensor, targets: Tensor, start: Tensor | None) -> Tensor:
        return APGD(loss, self.steps)(
            self.model,
            self.images[index],
            self.labels[index],
            self.ball,
            self.criterion,
            generator=self.generator,
            targets=targets,
            start=start,
        )
