"""Targeted APGD at every likely wrong class, and at its dummy: a dummy win counts as its class when deployed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ducat_serve.pairs import pair_columns
from training.attacks.apgd import APGD
from training.attacks.base import Attack, TargetModel, Task
from training.attacks.frozen import frozen
from training.attacks.losses import LossOfFold, targeted_dlr, targeted_margin


@dataclass(frozen=True)
class TargetedAPGD(Attack):
    """APGD with a targeted loss at the best other classes t, each as t and as its dummy t + C.

    Args:
        targets: how many classes, those that score best on the clean image; 9 as in AutoAttack.
        steps: of APGD at each target.
    """

    name: ClassVar[str] = "targeted"
    knows_pairs: ClassVar[bool] = True
    loss: LossOfFold = targeted_dlr
    steps: int = 50
    targets: int = 9

    def fitted(self, target: TargetModel) -> Self:
        """Targeted DLR needs 4 classes."""
        return self if target.num_classes >= 4 else replace(self, loss=targeted_margin)

    def __call__(self, task: Task) -> Tensor:
        """Returns what `one_by_one` does."""
        fold = task.model.fold
        with frozen(task.model), torch.no_grad():
            logits = task.model(task.images)
        classes = logits.shape[1]
        ranked = logits.scatter(1, task.labels.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
        targets = [
            columns
            for rank in range(min(self.targets, classes - 1))
            for columns in pair_columns(ranked[:, rank], classes, fold)
        ]
        return one_by_one(APGD(self.loss, self.steps), task, targets)


def one_by_one(search: APGD, task: Task, targets: Sequence[Tensor]) -> Tensor:
    """Attack a batch at one target after another; an example that succeeds is not attacked again.

    Args:
        search: with a targeted loss.
        targets: each int64 [N], the targets of all examples.

    Returns a success for every example that has one, else what the last target led to.
    """
    best = task.images.clone()
    left = torch.arange(len(best), device=best.device)
    for target in targets:
        if len(left) == 0:
            break
        best[left] = found = search(task.only(left), targets=target[left])
        with frozen(task.model), torch.no_grad():
            left = left[~task.criterion(task.model.classifier(found), task.labels[left])]
    return best
