"""TRADES (Zhang et al. 2019, arXiv 1901.08573, eq. 5): clean accuracy plus beta times a divergence.

Off, and before the dummy phase: ``CE(x, y) + beta * KL(p(x) || p(x_adv))``. In the dummy phase the first term is
DUCAT's, over both halves. The inner attack maximises the divergence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.attacks.ball import Ball
from training.objectives.objective import Objective, forward_both, in_float, near


@dataclass(frozen=True)
class Trades(Objective):
    """TRADES with any mode of DUCAT."""

    beta: float

    def start(self, images: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
        return near(images, ball, generator)

    def reference(self, model: nn.Module, images: Tensor) -> Tensor | None:
        with torch.no_grad():
            return in_float(model(images))

    def attack_loss(
        self,
        logits: Tensor,
        labels: Tensor,  # noqa: ARG002
        reference: Tensor | None,
        dummy_phase: bool,
    ) -> Tensor:
        """KL(p(x) || p(x_adv)) per image, [N]."""
        assert reference is not None
        return self._divergence(reference, logits, dummy_phase)

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, dummy_phase: bool
    ) -> Tensor:
        clean, attacked = forward_both(model, images, adversarial)
        if dummy_phase and self.ducat.mode != "off":
            classification = self.ducat.with_dummies(clean, attacked, labels)
        else:
            classification = self.ducat.cross_entropy(clean, labels, dummy_phase=False).mean()
        return classification + self.beta * self._divergence(clean, attacked, dummy_phase).mean()

    def _divergence(self, clean: Tensor, attacked: Tensor, dummy_phase: bool) -> Tensor:
        p, q = self.ducat.log_posterior(clean, dummy_phase), self.ducat.log_posterior(attacked, dummy_phase)
        return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
