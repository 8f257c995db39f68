"""How the terms of every method read raw logits, in each mode.

| mode   | classification                                       | KL, JSD, margins, distances in | deployed |
|--------|------------------------------------------------------|--------------------------------|----------|
| off    | the plain method's, integer labels                   | softmax over all logits        | C logits |
| paper  | CE over 2C, two-hot labels (arXiv 2410.12671, eq. 5) | softmax over 2C, as published  | max-fold |
| folded | -log P_y + split_weight * BCE of the split           | folded posterior P over C      | lse-fold |

Before the dummy phase a run of every mode reads its logits as `off` does, on the 2C head with integer labels
(``PLAIN``). The paper's alpha, the weight of the adversarial half, is 1 and not an option; ``--clean-share`` says how
much the clean half counts.

Label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7) mixes the classification loss with the cross entropy
against the uniform distribution, over the classes that the mode measures in. Inner attacks never smooth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ducat_serve.pairs import fold_logits, folded_log_posterior, pair_cross_entropy
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
    label_smoothing: float = 0.0

    @property
    def trains_dummies(self) -> bool:
        return self.mode != "off"

    def logits(self, logits: Tensor) -> Tensor:
        """The logits, [N, C] or [N, 2C], that this mode compares: the lse-fold in `folded`, else all of them."""
        return fold_logits(logits, "lse") if self.mode == "folded" else logits

    def log_posterior(self, logits: Tensor) -> Tensor:
        """Log probabilities, [N, C] or [N, 2C], in which this mode measures what is not classification."""
        return folded_log_posterior(logits) if self.mode == "folded" else logits.log_softmax(dim=1)

    def squared_distance(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """``sum_k (p_k - p'_k)^2`` between the posteriors of two batches of logits, [N]."""
        p, q = self.log_posterior(clean).exp(), self.log_posterior(adversarial).exp()
        return (p - q).square().sum(dim=1)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy against the ORIGINAL label in this mode's posterior, [N]: the inner attack's loss."""
        return F.nll_loss(self.log_posterior(logits), labels, reduction="none")

    def classification(self, logits: Tensor, labels: Tensor, dummy_weight: float | Tensor) -> Tensor:
        """What the update minimises, [N]: against two-hot labels in a mode that trains dummies, smoothed.

        Args:
            dummy_weight: the label's weight on the dummy, a number or [N]; without dummies it says nothing.
        """
        if self.trains_dummies:
            losses = pair_cross_entropy(logits, labels, dummy_weight, self.split_weight)
        else:
            losses = self.cross_entropy(logits, labels)
        if self.label_smoothing == 0:
            return losses
        uniform = -self.log_posterior(logits).mean(dim=1)
        return (1 - self.label_smoothing) * losses + self.label_smoothing * uniform


PLAIN = Ducat("off")
