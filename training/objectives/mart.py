"""MART (Wang et al. 2020, ICLR, "Improving adversarial robustness requires revisiting misclassified examples", eq. 11).

``BCE(x_adv, y) + beta * mean((1 - p_y(x)) KL(p(x) || p(x_adv)))``, where the boosted cross entropy is
``-log p_y(x_adv) - log(1 - max_{k != y} p_k(x_adv))``. With dummies its first part is DUCAT's, over both halves.
The inner attack maximises cross entropy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.attacks.ball import Ball
from training.attacks.inner import InnerAttack, NearPGD
from training.objectives.objective import Batch, Objective, forward_both

_ALMOST_ONE = 1.0001  # as in the authors' code: bounds the logarithm where the runner-up has all the mass


@dataclass(frozen=True)
class Mart(Objective):
    """MART with any mode of DUCAT; in `paper` the runner-up may be the label's own dummy, as published."""

    beta: float = 6.0

    def inner_attack(self, ball: Ball, steps: int, step_size: float) -> InnerAttack:
        return NearPGD(ball, steps, step_size)

    def loss(self, model: nn.Module, batch: Batch, adversarial: Tensor) -> Tensor:
        clean, attacked = forward_both(model, batch.images, adversarial)
        p, q = self.ducat.log_posterior(clean), self.ducat.log_posterior(attacked)
        classification = self.classification(clean, attacked, batch.labels)
        index = batch.labels.unsqueeze(1)
        runner_up = q.scatter(1, index, -torch.inf).amax(dim=1).exp()
        boost = -(_ALMOST_ONE - runner_up).log()
        doubt = 1 - p.gather(1, index).squeeze(1).exp()
        divergence = F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
        return classification + boost.mean() + self.beta * (doubt * divergence).mean()
