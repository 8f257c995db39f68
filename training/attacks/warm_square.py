"""Restarts that lead to different places, then random squares from the best of them.

Where gradients mislead (networks trained with large eps on small images, say), restarts from random points run
into the same dead ends. Output-diversified starts (Tashiro, Song and Ermon 2020, arXiv 2003.06878) begin where a
random combination of logits is high. Random squares (see `square`) from the best place so far need no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from training.attacks.apgd import APGD
from training.attacks.base import Attack, Best, Task, value
from training.attacks.diversified import diversified_start
from training.attacks.frozen import frozen
from training.attacks.losses import margin, pair_margin
from training.attacks.square import Square


@dataclass(frozen=True)
class WarmSquare(Attack):
    """``restarts`` short APGD runs on the margin from diversified starts, then ``queries`` random squares.

    With dummies every other run uses the pair margin.

    Args:
        steps: of each APGD run.
    """

    name: ClassVar[str] = "square-warm"
    knows_pairs: ClassVar[bool] = True
    restarts: int = 9
    steps: int = 25
    queries: int = 1000

    def __call__(self, task: Task) -> Tensor:
        """Returns the best images found, as `APGD` does."""
        best = Best(task.images)
        margin_loss = margin(task.model.fold)
        for restart in range(self.restarts):
            index = (~best.success).nonzero().squeeze(1)
            if len(index) == 0:
                return best.images
            search = APGD(partial(pair_margin, temperature=1) if restart % 2 else margin, self.steps)
            open_, own = task.only(index), task.labels[index]
            with frozen(task.model):
                found = search(open_, start=diversified_start(open_))
                best.offer(index, found, value(task.model, found, own, own, margin_loss, task.criterion))
        index = (~best.success).nonzero().squeeze(1)
        best.images[index] = Square(self.queries)(task.only(index), start=best.images[index])
        return best.images
