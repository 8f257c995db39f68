"""What somebody set, laid over the settings of a recipe: what was not set follows from what was."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ducat_serve.threat_model import Norm, parse_size
from training.config import TrainConfig
from training.objectives import METHODS, is_adversarial, objective_class

# eps and step size of the paper's three threat models (arXiv 2410.12671, section 5), in pixels.
NORM_DEFAULTS: dict[Norm, tuple[float, float]] = {
    "linf": (8 / 255, 2 / 255),
    "l2": (128 / 255, 15 / 255),
    "l1": (2000 / 255, 400 / 255),
}
_PAPER_DROPS = (100 / 130, 105 / 130)  # of the epochs; for --schedule steps on a recipe of another schedule


def overlaid(
    recipe: Mapping[str, Any], given: Mapping[str, Any], *, off: Collection[str] = ()
) -> dict[str, Any]:
    """The settings of a complete recipe under those that were given, which always stay.

    Args:
        off: settings that are not taken from the recipe, of those that a run can do without.
    """
    settings = dict(recipe)
    if given.get("method", settings["method"]) != settings["method"]:
        for name in _of_one_method(given["method"]):
            settings.pop(name, None)
    if given.get("norm", "linf") != "linf":
        settings.pop("inner_attack", None)  # n-fgsm is made for linf
    if "attack_steps" in given or "step_size" in given:
        settings.pop("inner_attack", None)  # n-fgsm has one step of its own, and leaves these to validation
    if given.get("schedule") == "one-cycle":
        settings.pop("warmup", None)  # it has a rise of its own
    for name in off:
        if name in TrainConfig.model_fields and TrainConfig.model_fields[name].default is None:
            settings.pop(name, None)
    if given.get("ducat") == "off":
        settings.pop("ducat_start", None)
    if given.get("ducat", "folded") != "folded":
        settings.pop("split_weight", None)
    if "ema_decay" not in {*settings, *given}:
        settings.pop("ema_warmup", None)
    values = {**settings, **given}
    values.update(_threat_model(settings, given))
    epochs = values["epochs"]
    if "lr_milestones" not in given and values.get("schedule", "steps") != "steps":
        values["lr_milestones"] = ()
    elif "lr_milestones" not in given:  # a shorter run than the recipe's has its drops at the same fractions
        drops = [drop / settings["epochs"] for drop in settings["lr_milestones"]]
        fractions = drops if settings.get("schedule", "steps") == "steps" else _PAPER_DROPS
        values["lr_milestones"] = _scaled([fraction * epochs for fraction in fractions])
    for name in ("warmup", "eps_ramp", "ducat_start"):  # of a shorter run they take the same share
        if settings.get(name) is not None and name not in given:
            values[name] = max(1, round(settings[name] * epochs / settings["epochs"]))
    if values.get("eps_ramp") is None or ("eps_ramp" in given and "measure_start" not in given):
        # Somebody has said what the start weights are, or there is nothing to ramp.
        values.pop("measure_start", None)
    return values


def _of_one_method(method: str) -> list[str]:
    """The settings that a recipe made for another method does not hand on to ``method``: what the user gives stays."""
    names = ["beta"]  # each method's weight is its own
    if method not in METHODS:  # refused with the rest of the configuration
        return names
    objective = objective_class(method)
    if objective.attacks_in_one_step or not is_adversarial(method):
        names.append("inner_attack")
    if not is_adversarial(method):
        names.append("eps_ramp")
    return names


def _scaled(milestones: Sequence[float]) -> tuple[int, ...]:
    """Milestones as whole epochs, one apart at least."""
    scaled = [round(milestone) for milestone in milestones]
    for later in range(len(scaled) - 1, 0, -1):
        scaled[later - 1] = max(0, min(scaled[later - 1], scaled[later] - 1))
    return tuple(scaled)


def _threat_model(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, float]:
    norm: Norm = given.get("norm", recipe["norm"])
    eps, step_size = NORM_DEFAULTS[norm]
    if norm == recipe["norm"]:
        eps, step_size = parse_size(str(recipe["eps"])), parse_size(str(recipe["step_size"]))
    chosen = given.get("eps", eps)
    # A larger ball needs larger steps to be crossed in as many.
    return {"eps": chosen, "step_size": given.get("step_size", step_size * chosen / eps)}
