"""A search that is begun from output-diversified starts, and not from a random point of the ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from training.attacks.apgd import APGD
from training.attacks.ball import Ball
from training.attacks.base import Attack
from training.attacks.criteria import Criterion
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
        with frozen(model):
            start = diversified_start(model, images, ball, generator)
        return self.search(model, images, labels, ball, criterion, generator=generator, start=start)
