"""TRADES (Zhang et al. 2019, arXiv 1901.08573, eq. 5): clean accuracy plus beta times a divergence.

Plain: ``CE(x, y) + beta * KL(p(x) || p(x_adv))``. With dummies the first term is DUCAT's,
over both halves. The inner attack maximises the divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.attacks.ball import Ball
from training.attacks.inner import InnerAttack, NearPGD
from training.objectives.objective import Batch, Objective, forward_both, in_float


@dataclass(frozen=True)
class Trades(Objective):
    """TRADES with any mode of DUCAT."""

    beta: float = 6.0
    plain_clean_share: ClassVar[float] = 1.0

    def inner_attack(self, ball: Ball, steps: int, step_size: float) -> InnerAttack:
        return NearPGD(ball, steps, step_size)

    def reference(self, model: nn.Module, batch: Batch) -> Tensor | None:
        with torch.no_grad():
            return in_float(model(batch.images))

    def attack_loss(self, logits: Tensor, batch: Batch, reference: Tensor | None) -> Tensor:  # noqa: ARG002
        """KL(p(x) || p(x_adv)) per image, [N]."""
        assert reference is not None
        return self._divergence(reference, logits)

    def loss(self, model: nn.Module, batch: Batch, adversarial: Tensor) -> Tensor:
        clean, attacked = forward_both(model, batch.images, adversarial)
        classification = self.classification(clean, attacked, batch.labels)
        return classification + self.beta * self._divergence(clean, attacked).mean()

    def _divergence(self, clean: Tensor, attacked: Tensor) -> Tensor:
        p, q = self.ducat.log_posterior(clean), self.ducat.log_posterior(attacked)
        return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
