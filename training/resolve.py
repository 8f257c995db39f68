"""What a user gave and a recipe, resolved into the settings of a training run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Integral
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from ducat_serve.errors import UsageError
from ducat_serve.spec import first_problem
from ducat_serve.threat_model import Norm, parse_size
from training.config import Contradiction, TrainConfig
from training.objectives import METHODS, is_adversarial, methods_with, objective_class
from training.objectives.ducat import Mode
from training.recipes import load_recipe, recipe_of

# eps and step size of the paper's three threat models (arXiv 2410.12671, section 5), in pixels.
NORM_DEFAULTS: dict[Norm, tuple[float, float]] = {
    "linf": (8 / 255, 2 / 255),
    "l2": (128 / 255, 15 / 255),
    "l1": (2000 / 255, 400 / 255),
}
FOLDED_SPLIT_WEIGHT = 0.1
_PAPER_DROPS = (100 / 130, 105 / 130)  # of the epochs; for --schedule steps on a recipe of another schedule


def resolve(
    dataset: str, given: dict[str, Any], recipe: str | None = None, *, off: Collection[str] = ()
) -> TrainConfig:
    """Overlay what the user gave (None = not given) on a recipe, and derive the rest.

    Args:
        recipe: its name; that of the data set unless given.
        off: settings that are not taken from it, of those that a run can do without.

    Raises:
        UsageError: a value out of range or a combination that makes no sense.
    """
    given = _each_checked({key: value for key, value in given.items() if value is not None})
    _require_ordered(given.get("lr_milestones", ()))
    settings = load_recipe(recipe or recipe_of(dataset))
    if recipe is not None:
        _require_recipe_for(dataset, recipe, settings)
    if given.get("method", settings["method"]) != settings["method"]:
        for name in _of_one_method(given["method"]):
            settings.pop(name, None)
    if given.get("schedule") == "one-cycle":
        settings.pop("warmup", None)  # it has a rise of its own
    for name in off:
        if name in TrainConfig.model_fields and TrainConfig.model_fields[name].default is None:
            settings.pop(name, None)
    if "ema_decay" not in {*settings, *given}:
        settings.pop("ema_warmup", None)
    values = {**settings, **given, "dataset": dataset}
    values.update(_threat_model(settings, given))
    epochs = values["epochs"]
    if "lr_milestones" not in given and values.get("schedule", "steps") != "steps":
        values["lr_milestones"] = ()
    elif "lr_milestones" not in given:  # a shorter run than the recipe's has its drops at the same fractions
        drops = settings["lr_milestones"]
        fractions = [drop / settings["epochs"] for drop in drops] if drops else _PAPER_DROPS
        values["lr_milestones"] = _scaled([fraction * epochs for fraction in fractions])
    if "warmup" in settings and "warmup" not in given:
        values["warmup"] = max(1, round(settings["warmup"] * epochs / settings["epochs"]))
    # The paper: dummies from epoch 105 of 130.
    if values.setdefault("ducat", _default_mode(values["method"])) != "off":
        values.setdefault("ducat_start", int(epochs * 0.8) + 1)
    if "eps_ramp" in given or values.get("eps_ramp") is None:
        # The user has said what the start weights are, or there is nothing to ramp.
        values.pop("measure_start", None)
    # A ramp that is decided by measurement is a share of the run; a fixed one that does not fit is refused below.
    if values.get("measure_start") and values["eps_ramp"] > epochs:
        values["eps_ramp"] = max(1, round(values["eps_ramp"] * epochs / settings["epochs"]))
    if values["ducat"] == "folded":
        values.setdefault("split_weight", FOLDED_SPLIT_WEIGHT)
    if values["method"] in methods_with("beta"):
        values.setdefault("beta", objective_class(values["method"]).default("beta"))
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise _invalid(error) from error


def _each_checked(given: dict[str, Any]) -> dict[str, Any]:
    """Every value by itself, as its setting has it: what is derived from it relies on its kind and range.

    Kinds are strict, since a value may come from Python code, where True is a whole number to some and "yes" is true.
    Names of no setting stay; they are refused with the whole. Raises UsageError.
    """
    known = {name: field for name, field in TrainConfig.model_fields.items() if name in given}
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in known.items()}
    try:
        model = create_model("Given", __config__=ConfigDict(strict=True), **fields)
        checked = model.model_validate({name: _as_python(given[name]) for name in known})
    except ValidationError as error:
        raise _invalid(error) from error
    return {**given, **{name: getattr(checked, name) for name in known}}


def _as_python(value: object) -> object:
    """Lists as tuples and whole numbers of numpy as Python's, which strict kinds would not take."""
    if isinstance(value, list):
        return tuple(value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _require_ordered(milestones: tuple[int, ...]) -> None:
    """Raise UsageError for epochs that fall or are negative: more likely a slip than meant.

    Checked where they are given and not in `TrainConfig`, since runs of older versions may hold such.
    """
    ordered = sorted(set(milestones))
    if list(milestones) != ordered or (ordered and ordered[0] < 0):
        sound = [milestone for milestone in ordered if milestone >= 0]
        raise UsageError(
            f"--lr-milestones {','.join(map(str, milestones))}: they are epochs in rising order, from 0.",
            f"give --lr-milestones {','.join(map(str, sound))}" if sound else "leave out --lr-milestones",
        )


def _invalid(error: ValidationError) -> UsageError:
    cause = error.errors()[0].get("ctx", {}).get("error")
    return UsageError(
        f"Invalid training configuration: {first_problem(error)}.",
        cause.instead if isinstance(cause, Contradiction) else "ducat train --help",
    )


def _require_recipe_for(dataset: str, recipe: str, settings: dict[str, Any]) -> None:
    """A recipe may be taken for images of one's own, but not for another data set with a recipe of its own."""
    made_for = settings.get("dataset")
    if made_for in (None, dataset) or dataset.startswith("folder:"):
        return
    raise UsageError(
        f"The recipe {recipe} is made for {made_for}, not for {dataset}.",
        f"ducat train --recipe {recipe}, or ducat train --dataset {dataset}",
    )


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


def _default_mode(method: str) -> Mode:
    return "paper" if is_adversarial(method) else "off"


def _scaled(milestones: Sequence[float]) -> tuple[int, ...]:
    """Milestones as whole epochs, one apart at least."""
    scaled = [round(milestone) for milestone in milestones]
    for later in range(len(scaled) - 1, 0, -1):
        scaled[later - 1] = max(0, min(scaled[later - 1], scaled[later] - 1))
    return tuple(scaled)


def _threat_model(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, float]:
    norm: Norm = given.get("norm", recipe["norm"])
    eps, step_size = NORM_DEFAULTS[norm]
    if norm == recipe["norm"]:
        eps, step_size = parse_size(recipe["eps"]), parse_size(recipe["step_size"])
    chosen = given.get("eps", eps)
    # A larger ball needs larger steps to be crossed in as many.
    return {"eps": chosen, "step_size": given.get("step_size", step_size * chosen / eps)}
