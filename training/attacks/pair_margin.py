"""APGD on a margin that weighs both logits of the label's pair."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from training.attacks.apgd import APGD
from training.attacks.base import Attack, TargetModel, Task
from training.attacks.losses import pair_margin


@dataclass(frozen=True)
class PairMargin(Attack):
    """Best logit outside of the pair minus a weighted mean of the pair's two; see `losses.pair_margin`.

    Args:
        temperature: 0 weighs both logits of the pair alike, a large one the larger of them.
    """

    knows_pairs: ClassVar[bool] = True
    temperature: float
    steps: int = 100

    @property
    def name(self) -> str:
        return f"pair-margin-{self.temperature:g}"

    def __call__(self, task: Task) -> Tensor:
        return APGD(partial(pair_margin, temperature=self.temperature), self.steps)(task)

    def applies(self, target: TargetModel) -> bool:
        """Without pairs in one network the temperature makes no difference: one of these attacks is enough."""
        return target.fold in ("max", "lse") or self.temperature == 1
