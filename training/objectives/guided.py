"""Guided adversarial training (Sriramanan, Addepalli, Baburaj and Babu, NeurIPS 2020, "Guided Adversarial Attack for
Evaluating and Enhancing Adversarial Defenses", algorithm 2).

``CE(x) + beta * sum_k (p_k - p'_k)^2`` with posteriors p of an image and p' of its adversarial counterpart, made in
one step of eps from a corner of the half ball: up the cross entropy in one batch, up the cross entropy plus
beta times the squared distance in the next. beta is four times as large in the last 15 % of the epochs.
With dummies the cross entropy is DUCAT's, over both halves; `folded` measures the distance between folded posteriors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ducat_serve.threat_model import Norm
from training.attacks.ball import Ball
from training.attacks.inner import CornerFGSM, InnerAttack
from training.objectives.objective import Batch, Objective, forward_both, in_float

_LATE = 0.85  # of the epochs; the authors' 85 of 100
_LATE_FACTOR = 4.0


@dataclass(frozen=True)
class Guided(Objective):
    """Guided adversarial training with any mode of DUCAT, linf only. ``epochs`` are those of the whole run."""

    beta: float = 10.0
    epochs: int = field(kw_only=True)
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    attacks_in_one_step: ClassVar[bool] = True
    plain_clean_share: ClassVar[float] = 1.0

    def weight(self, epoch: int) -> float:
        """beta in ``epoch``, counted from 1."""
        return self.beta * (_LATE_FACTOR if epoch > _LATE * self.epochs else 1.0)

    def one_step_attack(self, ball: Ball) -> InnerAttack:
        return CornerFGSM(ball)

    def reference(self, model: nn.Module, batch: Batch) -> Tensor | None:
        if not self._is_guided(batch):
            return None
        with torch.no_grad():
            return in_float(model(batch.images))

    def attack_loss(self, logits: Tensor, batch: Batch, reference: Tensor | None) -> Tensor:
        """Cross entropy per image, [N]; in every second batch the weighted squared distance is added."""
        losses = self.ducat.cross_entropy(logits, batch.labels)
        if reference is None:
            return losses
        return losses + self.weight(batch.epoch) * self.ducat.squared_distance(reference, logits)

    def loss(self, model: nn.Module, batch: Batch, adversarial: Tensor) -> Tensor:
        clean, attacked = forward_both(model, batch.images, adversarial)
        distance = self.ducat.squared_distance(clean, attacked).mean()
        return self.classification(clean, attacked, batch.labels) + self.weight(batch.epoch) * distance

    def _is_guided(self, batch: Batch) -> bool:
        return batch.step % 2 == 1
