"""Detectors: scores by which an image could be flagged instead of answered, and the attacks that evade them.

Scores are log odds of a probability: the same order as the probability, but they do not saturate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ducat_serve.pairs import dummy_mass_log_odds, fold_logits
from ducat_serve.spec import Fold
from training.attacks.apgd import APGD
from training.attacks.criteria import Criterion, Score, misclassified, misclassified_unflagged
from training.attacks.losses import Loss, climbable_logits
from training.attacks.orthogonal_pgd import OrthogonalPGD


@dataclass(frozen=True)
class Detector:
    """A score that flags an image where it is high, and the attack that wants to be wrong with a low one."""

    name: Literal["dummy_mass", "confidence"]
    score: Score
    attack: APGD | OrthogonalPGD
    probability: Callable[[float], float]  # from the score to what the report shows

    def criterion(self, fold: Fold, threshold: float) -> Criterion:
        """What an attack that evades it looks for, so that of what it finds the best also passes laxer thresholds.

        The best of `APGD` is the surest wrong answer, with or without success. The best of `OrthogonalPGD` is the one
        that a detector notices least among its successes, so that those are all wrong answers.
        """
        if isinstance(self.attack, OrthogonalPGD):
            return misclassified(fold)
        return misclassified_unflagged(fold, self.score, threshold)


def detectors(fold: Fold) -> list[Detector]:
    """Softmax confidence, and dummy mass where there are dummies."""
    confidence = Detector(
        "confidence", _doubt(fold), APGD(_confidently_wrong), lambda doubt: _sigmoid(-doubt)
    )
    if fold not in ("max", "lse"):  # two towers either answer or do not
        return [confidence]
    evasion = OrthogonalPGD(evasion_loss=_few_dummies)
    return [Detector("dummy_mass", dummy_mass_log_odds, evasion, _sigmoid), confidence]


def _few_dummies(raw: Tensor, _labels: Tensor, _targets: Tensor) -> Tensor:
    return -dummy_mass_log_odds(raw)


def _doubt(fold: Fold) -> Score:
    """Minus the log odds of the largest softmax probability of the deployed logits."""

    def score(raw: Tensor) -> Tensor:
        logits = fold_logits(raw, fold)
        top, index = logits.max(dim=1)
        rest = logits.scatter(1, index.unsqueeze(1), -torch.inf)
        return rest.logsumexp(dim=1) - top

    return score


def _confidently_wrong(fold: Fold) -> Loss:
    """The log odds of the best wrong class: one goal serves both, for a sure wrong answer is wrong."""

    def loss(raw: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
        logits = climbable_logits(raw, fold)
        top, index = logits.scatter(1, labels.unsqueeze(1), -torch.inf).max(dim=1)
        return top - logits.scatter(1, index.unsqueeze(1), -torch.inf).logsumexp(dim=1)

    return loss


def _sigmoid(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).sigmoid().item()
