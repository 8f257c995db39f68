"""Many short searches on the images that may still fall: rounds that begin with those closest to the boundary.

After a first strong attack most images are far from the boundary, and no later attack moves them over it; what falls
late falls from the closest third. So a round goes through the survivors in the order of the best margin found so far,
and ends where a share of them held in a row. Where images go on falling it goes on, to the last of them: the cost
follows from the model. To discard the hardest images is an idea of the Adaptive Auto Attack (Liu et al., CVPR 2022,
arXiv 2203.05154); here none is discarded for good, because every round begins anew with all survivors.

The searches of one round for one image (towards its wrong classes, or from several starts) are rivals: see `rivals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from ducat_serve.pairs import fold_logits
from ducat_serve.spec import Fold, Switch
from training.attacks.apgd import APGD
from training.attacks.base import Attack, Best, TargetModel, Task, value
from training.attacks.diversified import diversified_start
from training.attacks.frozen import frozen
from training.attacks.losses import (
    Loss,
    LossOfFold,
    dlr,
    lse_cross_entropy,
    mapped_margin,
    margin,
    pair_margin,
    targeted_dlr,
    targeted_margin,
)
from training.attacks.square import Square

_BLOCK = 1 / 16  # share of the survivors that are attacked at once
_HELD = 2  # blocks without a success, one after the other, that end a round
_HELD_TARGETS = 4  # the same for the round at targets, where images from further away fall
_FEWEST = 3  # images in a block
_IDLE_ROUNDS = 2  # from diversified starts that break nothing, one after the other, that end such rounds

# Examples, int64 [M], and which copy of its example each row is, int64 [M], to images [M, channels, H, W].
Search = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ClosestFirst(Attack):
    """Rounds of APGD on margins, at targets and from diversified starts, then random squares from the best image.

    Every image is attacked on the margin; the other rounds begin with the closest images and end early. With dummies a
    wrong class t is aimed at as t or as its dummy t + C, whichever logit is higher; with two towers as both. There are
    then restarts on `losses.pair_margin` too, which pushes both logits of the label's pair down.

    Args:
        untargeted, targeted: the losses, DLR unless there are too few classes.
        steps: of each APGD run.
        targets: how many wrong classes, by their logits at the best image so far; 9 as in AutoAttack.
        restarts: of each loss from output-diversified starts in one round; such rounds are repeated while they break
            something.
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

    def __call__(self, task: Task) -> Tensor:
        """Returns the best images by the criterion, then by the margin of the deployed logits."""
        model, images = task.model, task.images
        survivors = _Survivors(task, self.steps)
        with frozen(model):
            survivors.offer(torch.arange(len(images), device=images.device), images)
            survivors.attack(survivors.at_loss(margin), everyone=True)
            with torch.no_grad():
                classes = model(images[:1]).shape[1]
            columns = min(self.targets, classes - 1) * _columns_of_target(model.fold)
            survivors.attack(survivors.at_target(self.targeted), columns, held=_HELD_TARGETS)
            losses = _other_losses(model.fold, self.untargeted)
            survivors.attack(survivors.at_each(losses), len(losses))
            diverse: list[LossOfFold] = [margin] if model.fold == "none" else [margin, _PAIR]
            idle = 0
            while idle < _IDLE_ROUNDS:
                fallen = sum(
                    survivors.attack(survivors.at_loss(loss, diversified=True), self.restarts)
                    for loss in diverse
                )
                idle = 0 if fallen else idle + 1
            survivors.attack(survivors.by_squares(self.queries))
        return survivors.best.images


_PAIR = partial(pair_margin, temperature=1)


def _other_losses(fold: Fold, untargeted: LossOfFold) -> list[LossOfFold]:
    """What is maximised beside the margin."""
    if fold == "none":
        return [untargeted]
    if isinstance(fold, Switch):
        return [untargeted, _PAIR, mapped_margin]
    return [
        untargeted,
        lse_cross_entropy,
        *(partial(pair_margin, temperature=t) for t in (0, 1, 4)),
    ]


def _columns_of_target(fold: Fold) -> int:
    """How many raw logits of one wrong class are aimed at.

    The higher of a pair, but both of two towers, whose logits have different scales.
    """
    return 2 if isinstance(fold, Switch) else 1


@dataclass
class _Survivors:
    """The examples of a batch, the best image of each so far, and the searches for better ones."""

    task: Task
    steps: int  # of each APGD run

    def __post_init__(self) -> None:
        self.best = Best(self.task.images)

    def attack(self, search: Search, copies: int = 1, *, held: int = _HELD, everyone: bool = False) -> int:
        """One round over the survivors, the closest first; returns how many fell.

        It ends where ``held`` blocks in a row held, unless ``everyone`` is attacked. As many blocks are attacked at
        once as are attacked in any case, since small batches are slow. Each example is attacked in ``copies`` ways, in
        no more rows than the batch has, or else one example at a time.
        """
        index = (~self.best.success).nonzero().squeeze(1)
        index = index[self.best.loss[index].argsort(descending=True, stable=True)]
        size = max(_FEWEST, len(index) if everyone else math.ceil(_BLOCK * len(index)))
        start = fallen = so_far = 0
        while start < len(index) and so_far < held:
            blocks = index[start : start + (held - so_far) * size]
            for part in torch.split(blocks, max(1, len(self.task.images) // copies)):
                copy = torch.arange(copies, device=part.device).repeat_interleave(len(part))
                for images in search(part.repeat(copies), copy).tensor_split(copies):
                    self.offer(part, images)
            for block in torch.split(blocks, size):
                fell = int(self.best.success[block].sum())
                fallen, so_far = fallen + fell, 0 if fell else so_far + 1
            start += len(blocks)
        return fallen

    def offer(self, index: Tensor, found: Tensor) -> None:
        """Keep ``found`` where it is better than the best image so far."""
        model, own = self.task.model, self.task.labels[index]
        evaluated = value(model, found, own, own, margin(model.fold), self.task.criterion)
        self.best.offer(index, found, evaluated)

    def at_loss(self, loss: LossOfFold, *, diversified: bool = False) -> Search:
        """APGD on a loss without targets, from a random start or an output-diversified one."""

        def search(index: Tensor, _copy: Tensor) -> Tensor:
            start = diversified_start(self.task.only(index)) if diversified else None
            return self._apgd(loss, index, self.task.labels[index], start)

        return search

    def at_each(self, losses: Sequence[LossOfFold]) -> Search:
        """APGD on each of the losses, from random starts."""

        def loss(fold: Fold) -> Loss:
            """That of the losses whose number stands in the place of the target."""
            each = [loss(fold) for loss in losses]
            return lambda raw, labels, chosen: (
                torch.stack([one(raw, labels, labels) for one in each], dim=1)
                .gather(1, chosen.unsqueeze(1))
                .squeeze(1)
            )

        def search(index: Tensor, copy: Tensor) -> Tensor:
            # Not rivals: values of different losses say nothing of which search is ahead.
            return APGD(loss, self.steps)(self.task.only(index), targets=copy)

        return search

    def at_target(self, loss: LossOfFold) -> Search:
        """APGD at the wrong classes in the order of the best image so far, at the column of each that is likelier."""

        def search(index: Tensor, copy: Tensor) -> Tensor:
            model, images = self.task.model, self.best.images[index]
            with torch.no_grad():
                raw = model.classifier(images)
            columns = _columns_of_target(model.fold)
            wrong = fold_logits(raw, model.fold).scatter(1, self.task.labels[index].unsqueeze(1), -torch.inf)
            rank = (copy // columns).unsqueeze(1)
            target = wrong.argsort(dim=1, descending=True).gather(1, rank)
            dummy = target + wrong.shape[1]
            if columns == 2:
                target = torch.where((copy % 2).unsqueeze(1) == 1, dummy, target)
            elif model.fold != "none":
                target = torch.where(raw.gather(1, dummy) > raw.gather(1, target), dummy, target)
            return self._apgd(loss, index, target.squeeze(1), None)

        return search

    def by_squares(self, queries: int) -> Search:
        """Random squares from the best image so far."""

        def search(index: Tensor, _copy: Tensor) -> Tensor:
            return Square(queries)(self.task.only(index), start=self.best.images[index])

        return search

    def _apgd(self, loss: LossOfFold, index: Tensor, targets: Tensor, start: Tensor | None) -> Tensor:
        return APGD(loss, self.steps)(self.task.only(index), targets=targets, start=start, rivals=index)
