"""What each method maximises in its inner attack and minimises in its update; one file per method.

A new method is a file with a subclass of `Objective` and a line in ``METHODS``. Its parameters are the fields of that
class; each of them is a setting of the same name in `TrainConfig` and an option of `ducat train`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.objectives.ducat import Ducat
    from training.objectives.objective import Objective

# By name and not by import, because the command line lists the methods and should not load torch for that.
METHODS = {
    "pgd-at": "training.objectives.adversarial_training:AdversarialTraining",
    "trades": "training.objectives.trades:Trades",
    "mart": "training.objectives.mart:Mart",
    "consistency": "training.objectives.consistency:Consistency",
    "guided": "training.objectives.guided:Guided",
    "pairing": "training.objectives.pairing:Pairing",
    "standard": "training.objectives.standard:Standard",
}
_ON_CLEAN_IMAGES_ALONE = frozenset({"standard"})


def is_adversarial(method: str) -> bool:
    """Whether a method trains on adversarial images; said here, since `ducat runs` loads no method."""
    return method not in _ON_CLEAN_IMAGES_ALONE


def objective_class(method: str) -> type[Objective]:
    """The class of a method in ``METHODS``. Raises KeyError for another."""
    found: type[Objective] = pkgutil.resolve_name(METHODS[method])
    return found


def create_objective(method: str, ducat: Ducat, settings: Mapping[str, Any]) -> Objective:
    """The objective of a method in ``METHODS``; its parameters are taken from the settings of the same names."""
    objective = objective_class(method)
    own = {name: settings[name] for name in objective.parameters()}
    return objective(ducat, settings.get("clean_share"), **own)


def methods_with(parameter: str) -> list[str]:
    """The methods that have a parameter, in the order of ``METHODS``."""
    return [method for method in METHODS if parameter in objective_class(method).parameters()]
