"""How the terms of every method read raw logits, in each mode.

| mode   | classification                                           | KL, JSD and margins in        | deployed |
|--------|----------------------------------------------------------|-------------------------------|----------|
| off    | the plain method's, integer labels                       | softmax over all logits       | C logits |
| paper  | CE over 2C, two-hot labels (arXiv 2410.12671, eq. 5)     | softmax over 2C, as published | max-fold |
| folded | -log P_y + split_weight * BCE of the split               | folded posterior P over C     | lse-fold |

Before the dummy phase a run of every mode reads its logits as `off` does, on the 2C head with integer labels
(``PLAIN``). The paper's alpha, the weight of the adversarial half, is 1 and not an option.
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
    """One mode. Raw logits are float [N, 2C] ([N, C] of a run without dummies), labels int64 [N] in [0, C)."""

    mode: Mode
    split_weight: float = 1.0

    @property
    def trains_dummies(self) -> bool:
        return self.mode != "off"

    def log_posterior(self, logits: Tensor) -> Tensor:
        """Log probabilities, [N, C] or [N, 2C], in which this mode measures what is not classification."""
        return folded_log_posterior(logits) if self.mode == "folded" else logits.log_softmax(dim=1)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy against the ORIGINAL label in this mode's posterior, [N]: the inner attack's loss."""
        return F.nll_loss(self.log_posterior(logits), labels, reduction="none")

    def two_hot_cross_entropy(self, clean: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """The classification loss that trains dummies: its mean over both halves, a scalar."""
        dummy_weight = torch.full((len(clean) + len(adversarial),), DUMMY_WEIGHT_BENIGN, device=clean.device)
        dummy_weight[len(clean) :] = DUMMY_WEIGHT_ADVERSARIAL
        logits = torch.cat([clean, adversarial])
        return pair_cross_entropy(logits, torch.cat([labels, labels]), dummy_weight, self.split_weight).mean()


PLAIN = Ducat("off")
