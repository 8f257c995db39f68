"""Scores by which an image could be flagged instead of answered, and the attacks that hide from them.

Scores are log odds of a probability: the same order as the probability, but they do not saturate. Higher is more
suspicious.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ducat_serve.pairs import dummy_mass_log_odds, fold_logits
from ducat_serve.spec import Fold
from training.attacks.apgd import apgd
from training.attacks.base import Attack
from training.attacks.criteria import Suspicion
from training.attacks.losses import Loss
from training.attacks.orthogonal_pgd import orthogonal_pgd

_STEPS = 100


@dataclass(frozen=True)
class Score:
    """A suspicion, and the attack that wants to be wrong with as little of it as possible."""

    name: Literal["dummy_mass", "confidence"]
    suspicion: Suspicion
    hiding: Attack
    probability: Callable[[float], float]  # from suspicion to what the report shows


def scores(fold: Fold) -> list[Score]:
    """Softmax confidence, and dummy mass where there are dummies."""
    confidence = Score(
        "confidence",
        _doubt(fold),
        partial(apgd, loss=_confidently_wrong(fold), steps=_STEPS),
        lambda doubt: _sigmoid(-doubt),
    )
    if fold == "none":
        return [confidence]
    hiding = partial(orthogonal_pgd, harmless=_few_dummies, steps=_STEPS)
    return [Score("dummy_mass", dummy_mass_log_odds, hiding, _sigmoid), confidence]


def _few_dummies(raw: Tensor, _labels: Tensor, _targets: Tensor) -> Tensor:
    return -dummy_mass_log_odds(raw)


def _doubt(fold: Fold) -> Suspicion:
    """Minus the log odds of the largest softmax probability of the deployed logits."""

    def suspicion(raw: Tensor) -> Tensor:
        logits = fold_logits(raw, fold)
        top, index = logits.max(dim=1)
        rest = logits.scatter(1, index.unsqueeze(1), -torch.inf)
        return rest.logsumexp(dim=1) - top

    return suspicion


def _confidently_wrong(fold: Fold) -> Loss:
    """The log odds of the best wrong class: one goal serves both, for a sure wrong answer is wrong."""

    def loss(raw: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
        logits = fold_logits(raw, fold)
        top, index = logits.scatter(1, labels.unsqueeze(1), -torch.inf).max(dim=1)
        return top - logits.scatter(1, index.unsqueeze(1), -torch.inf).logsumexp(dim=1)

    return loss


def _sigmoid(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).sigmoid().item()
