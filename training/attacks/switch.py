"""An attack on the switch itself: the robust tower unsure between the label and the standard tower's favourite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ducat_serve.errors import UsageError
from ducat_serve.pairs import split_pairs
from ducat_serve.spec import Switch
from training.attacks.apgd import APGD
from training.attacks.base import Attack, TargetModel, Task
from training.attacks.frozen import frozen
from training.attacks.losses import targeted_margin
from training.attacks.targeted_apgd import one_by_one


@dataclass(frozen=True)
class SwitchAttack(Attack):
    """APGD at the wrong classes that the standard tower likes best, on both towers' margins together.

    A standard tower gives way at once. So the class that it is led to is the one that costs the attacker least, and the
    whole budget goes into the robust tower, which need not say that class: it is enough that the switch does not act.

    Args:
        targets: how many classes, by the standard tower's logits at the clean image.
        steps: of APGD at each.
    """

    name: ClassVar[str] = "switch"
    knows_pairs: ClassVar[bool] = True
    steps: int = 50
    targets: int = 3

    def __call__(self, task: Task) -> Tensor:
        """Returns what `one_by_one` does."""
        with frozen(task.model), torch.no_grad():
            favourites, _ = split_pairs(task.model.classifier(task.images))
        wrong = favourites.scatter(1, task.labels.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
        targets = [wrong[:, rank] for rank in range(min(self.targets, favourites.shape[1] - 1))]
        return one_by_one(APGD(targeted_margin, self.steps), task, targets)

    def applies(self, target: TargetModel) -> bool:
        return isinstance(target.fold, Switch)

    def fitted(self, target: TargetModel) -> Self:
        if not self.applies(target):
            raise UsageError(f"{self.name} attacks a two-tower model, and this is none.", "choose apgd-ce")
        return self
