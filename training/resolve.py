"""What a user gave and a recipe, resolved into the settings of a training run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ducat_serve.errors import UsageError, command_line
from ducat_serve.spec import first_problem
from training.config import Contradiction, TrainConfig
from training.each_setting import each_checked
from training.objectives import is_adversarial, methods_with, objective_class
from training.objectives.ducat import Mode
from training.overlay import overlaid
from training.recipes import load_recipe, recipe_of

FOLDED_SPLIT_WEIGHT = 0.1


def resolve(
    dataset: str, given: Mapping[str, Any], recipe: str | Path | None = None, *, off: Collection[str] = ()
) -> TrainConfig:
    """Overlay what the user gave (None = not given) on a recipe, and derive the rest.

    Args:
        recipe: its name, or a file; that of the data set unless given.
        off: settings that are not taken from it, of those that a run can do without.

    Raises:
        UsageError: a value out of range or a combination that makes no sense.
    """
    try:
        given = each_checked({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise _invalid(error) from error
    _require_ordered(given.get("lr_milestones", ()))
    settings = load_recipe(recipe or recipe_of(dataset))
    _require_ordered(settings["lr_milestones"])
    if recipe is not None:
        _require_recipe_for(dataset, recipe, settings)
    values = {**overlaid(settings, given, off=off), "dataset": dataset}
    # The paper: dummies from epoch 105 of 130.
    if values.setdefault("ducat", _default_mode(values["method"])) != "off":
        values.setdefault("ducat_start", int(values["epochs"] * 0.8) + 1)
    if values["ducat"] == "folded":
        values.setdefault("split_weight", FOLDED_SPLIT_WEIGHT)
    if values["method"] in methods_with("beta"):
        values.setdefault("beta", objective_class(values["method"]).default("beta"))
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise _invalid(error) from error


def _require_ordered(milestones: Sequence[int]) -> None:
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


def _require_recipe_for(dataset: str, recipe: str | Path, settings: dict[str, Any]) -> None:
    """A recipe may be taken for images of one's own, but not for another data set with a recipe of its own."""
    made_for = settings.get("dataset")
    if made_for in (None, dataset) or dataset.startswith("folder:"):
        return
    raise UsageError(
        f"The recipe {recipe} is made for {made_for}, not for {dataset}.",
        f"{command_line('ducat', 'train', '--recipe', recipe)}, or ducat train --dataset {dataset}",
    )


def fewest_options(config: TrainConfig, options: Collection[str]) -> dict[str, Any]:
    """The options of `ducat train` that give a configuration again without its recipe, which may be a file.

    Left out are those that follow from the recipe of the data set and from the others. ``options`` are all there are.
    """
    values = {name: value for name, value in config if value is not None}
    for name in options:
        # The fastest arithmetic is chosen anew on each machine, unless it is given.
        if name not in ("dataset", "precision") and _gives(config, fewer := _without(values, name)):
            values = fewer
    return {name: value for name, value in values.items() if name in options}


def _gives(config: TrainConfig, values: Mapping[str, Any]) -> bool:
    try:
        return resolve(config.dataset, values) == config
    except UsageError:
        return False


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _default_mode(method: str) -> Mode:
    return "paper" if is_adversarial(method) else "off"
