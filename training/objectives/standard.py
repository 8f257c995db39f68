"""Training without adversarial images: what robust models are compared with."""

from __future__ import annotations

from torch import Tensor, nn

from training.attacks.ball import Ball
from training.attacks.inner import InnerAttack, NoAttack
from training.objectives.objective import Batch, Objective, in_float


class Standard(Objective):
    """Cross entropy on clean images. It has nothing to teach dummies, so it is for `off` alone."""

    def inner_attack(self, ball: Ball, steps: int, step_size: float) -> InnerAttack:  # noqa: ARG002
        return NoAttack()

    def loss(self, model: nn.Module, batch: Batch, adversarial: Tensor) -> Tensor:  # noqa: ARG002
        logits = in_float(model(batch.images))
        return self.ducat.classification(logits, batch.labels, dummy_weight=0.0).mean()
