"""How the terms of every method read 2C logits, in each mode and phase.

| ducat  | classification in the dummy phase, over cat(x, x_adv)    | KL, JSD and margins in        | deployed |
|--------|----------------------------------------------------------|-------------------------------|----------|
| off    | (no dummies)                                             | softmax over C                | C logits |
| paper  | CE over 2C, two-hot labels (arXiv 2410.12671, eq. 5)     | softmax over 2C, as published | max-fold |
| folded | -log P_y + split_weight * BCE of the split               | folded posterior P over C     | lse-fold |

Before the dummy phase `paper` and `folded` are the same: the plain method on the 2C head with integer labels. The
paper's alpha, the weight of the adversarial half, is 1 and not an option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ducat_serve.pairs import folded_log_posterior, pair_cross_entropy
from ducat_serve.spec import Fold

Mode = Literal["off", "paper", "folded"]

DUMMY_WEIGHT_BENIGN = 0.25
DUMMY_WEIGHT_ADVERSARIAL = 1.0
FOLDS: dict[Mode, Fold] = {"off": "none", "paper": "max", "folded": "lse"}


@dataclass(frozen=True)
class Ducat:
    """One mode. Raw logits are float [N, 2C] ([N, C] when off), labels int64 [N] with values in [0, C)."""

    mode: Mode
    split_weight: float

    def log_posterior(self, logits: Tensor, dummy_phase: bool) -> Tensor:
        """Log probabilities, [N, C] or [N, 2C], in which this mode measures what is not classification."""
        if self.mode == "folded" and dummy_phase:
            return folded_log_posterior(logits)
        return logits.log_softmax(dim=1)

    def cross_entropy(self, logits: Tensor, labels: Tensor, dummy_phase: bool) -> Tensor:
        """Cross entropy against the ORIGINAL label in this mode's posterior, [N]: the inner attack's loss."""
        return F.nll_loss(self.log_posterior(logits, dummy_phase), labels, reduction="none")

    def with_dummies(self, clean: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """The dummy phase's classification loss: its mean over both halves, a scalar."""
        dummy_weight = torch.full((len(clean) + len(adversarial),), DUMMY_WEIGHT_BENIGN, device=clean.device)
        dummy_weight[len(clean) :] = DUMMY_WEIGHT_ADVERSARIAL
        logits = torch.cat([clean, adversarial])
        return pair_cross_entropy(logits, torch.cat([labels, labels]), dummy_weight, self.split_weight).mean()
