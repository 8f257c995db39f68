"""What each method maximises in its inner attack and minimises in its update; one file per method."""

from __future__ import annotations

from training.objectives.adversarial_training import AdversarialTraining
from training.objectives.consistency import Consistency
from training.objectives.ducat import Ducat
from training.objectives.mart import Mart
from training.objectives.objective import Objective
from training.objectives.trades import Trades

METHODS = ("pgd-at", "trades", "mart", "consistency")


def create_objective(method: str, ducat: Ducat, beta: float) -> Objective:
    """The objective of a method in ``METHODS``; ``beta`` weighs the regulariser of TRADES and MART."""
    if method == "trades":
        return Trades(ducat, beta)
    if method == "mart":
        return Mart(ducat, beta)
    if method == "consistency":
        return Consistency(ducat)
    return AdversarialTraining(ducat)
