"""A recipe in a file of one's own: the settings of a recipe with those that its `extends` names below them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ducat_serve.errors import UsageError, command_line, unknown_name
from ducat_serve.spec import first_problem
from ducat_serve.toml_file import read_toml
from training.config import TrainConfig
from training.each_setting import each_checked

# Those of the weights that a run starts from, which only these weights can tell.
_OF_START_WEIGHTS = ("initial_weights", "pretrained", "pretrained_licence", "normalisation")
_SETTINGS = tuple(name for name in TrainConfig.model_fields if name not in _OF_START_WEIGHTS)
# The data set may be left to the command, and `method` is what the rest is derived from.
_REQUIRED = {name for name, field in TrainConfig.model_fields.items() if field.is_required()} - {"dataset"}
_REQUIRED.add("method")


def read_recipe_file(path: Path) -> dict[str, Any]:
    """What a file says, by the names of the settings; every value is one that its setting can have.

    Raises:
        DataError: there is no such file. UsageError: it is no TOML, or has a key or a value that no recipe has.
    """
    document = read_toml(path, f"the recipe {path}", command_line("ducat", "recipes", "copy", "digits", path))
    known = ("extends", *_SETTINGS)
    recipe: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown_name(f"key in {path}:", key, (one.replace("_", "-") for one in known))
        if name in recipe:
            raise UsageError(f"{path}: '{name.replace('_', '-')}' is there twice.", "delete one of the lines")
        recipe[name] = value
    if not isinstance(recipe.get("extends", ""), str):
        raise UsageError(f"{path}: 'extends' must be the name of a recipe.", "ducat recipes")
    try:
        return each_checked(recipe)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error)}.", "correct that line") from error


def require_complete(path: Path, recipe: dict[str, Any]) -> None:
    """Raise UsageError where a recipe leaves open what every training needs."""
    missing = [name.replace("_", "-") for name in _SETTINGS if name in _REQUIRED and name not in recipe]
    if missing:
        raise UsageError(
            f"{path} leaves open {', '.join(missing)}.",
            'give them, or begin the file with extends = "NAME"; `ducat recipes` lists the names',
        )
