"""A search that is begun from output-diversified starts, and not from a random point of the ball."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from training.attacks.apgd import APGD
from training.attacks.base import Attack, Task
from training.attacks.diversified import diversified_start
from training.attacks.frozen import frozen
from training.attacks.orthogonal_pgd import OrthogonalPGD


@dataclass(frozen=True)
class Diversified(Attack):
    """``search``, begun where a random combination of logits is high and not at a random point of the ball."""

    search: APGD | OrthogonalPGD

    @property
    def name(self) -> str:
        return f"diversified {self.search.name}"

    def __call__(self, task: Task) -> Tensor:
        with frozen(task.model):
            start = diversified_start(task)
        return self.search(task, start=start)
