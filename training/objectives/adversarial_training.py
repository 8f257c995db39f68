"""PGD adversarial training (Madry et al. 2018) with or without dummy classes.

| ducat  | inner attack              | dummy phase, over cat(x, x_adv)                                  | deployed |
|--------|---------------------------|------------------------------------------------------------------|----------|
| off    | CE                        | none; CE on x_adv                                                | C logits |
| paper  | CE over 2C against y      | CE over 2C, two-hot labels (arXiv 2410.12671, eq. 5 and alg. 1)  | max-fold |
| folded | -log P_y                  | -log P_y + split_weight * BCE of the split                       | lse-fold |

Before the dummy phase `paper` and `folded` are the same: plain adversarial training on the 2C head with
integer labels. The paper's alpha, the weight of the adversarial half, is 1 and not an option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ducat_serve.recovery import pair_cross_entropy
from ducat_serve.spec import Fold

Ducat = Literal["off", "paper", "folded"]

DUMMY_WEIGHT_BENIGN = 0.25
DUMMY_WEIGHT_ADVERSARIAL = 1.0
FOLDS: dict[Ducat, Fold] = {"off": "none", "paper": "max", "folded": "lse"}


@dataclass(frozen=True)
class AdversarialTraining:
    """What is maximised by the inner attack and minimised by the update, in each phase."""

    ducat: Ducat
    split_weight: float

    def attack_loss(self, logits: Tensor, labels: Tensor, dummy_phase: bool) -> Tensor:
        """The inner attack's loss per image, [N], from raw logits."""
        if self.ducat == "off":
            return F.cross_entropy(logits, labels, reduction="none")
        split_weight = 0.0 if self.ducat == "folded" and dummy_phase else 1.0
        return pair_cross_entropy(logits, labels, dummy_weight=0.0, split_weight=split_weight)

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, dummy_phase: bool
    ) -> Tensor:
        """The scalar training loss; one forward pass. ``model`` returns raw logits."""
        if not dummy_phase or self.ducat == "off":
            logits = model(adversarial).float()
            return self.attack_loss(logits, labels, dummy_phase=False).mean()
        logits = model(torch.cat([images, adversarial])).float()
        dummy_weight = torch.full((len(logits),), DUMMY_WEIGHT_BENIGN, device=logits.device)
        dummy_weight[len(images) :] = DUMMY_WEIGHT_ADVERSARIAL
        return pair_cross_entropy(logits, labels.repeat(2), dummy_weight, self.split_weight).mean()
