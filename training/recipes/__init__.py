"""Recipes: complete settings of `ducat train` by name, one TOML file each; `extends` names the one it builds on.

There is one for each data set, `-quick` for a first look on CPUs, and those that we recommend by what there is to
train on: `-hours` for CPUs, `-gpu` for one GPU. Another network or method is a flag and needs no recipe. ``cost`` says
in words what a recipe takes and ``reached`` what it was seen to reach; training never sees them.

A file of one's own is a recipe, too (file.py): wherever a recipe is named, its path may stand.
"""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from ducat_serve.errors import UsageError, unknown_name

# What earlier versions had a recipe of its own for.
_NETWORK_AND_METHOD = re.compile(
    r"(?P<dataset>cifar10|cifar100|tiny-imagenet|digits)"
    r"(-(?P<network>wrn-28-10))?(-(?P<method>trades|mart|consistency))?"
)


def recipe_names() -> list[str]:
    """All recipes, sorted."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def is_recipe_file(recipe: str | Path) -> bool:
    """Whether a recipe is a file of one's own: a Path, or a text that ends in .toml."""
    return isinstance(recipe, Path) or recipe.endswith(".toml")


def load_recipe(recipe: str | Path) -> dict[str, Any]:
    """The settings of a recipe, with those that it extends.

    Args:
        recipe: the name of one of ours, or a file of one's own.

    Raises:
        UsageError: an unknown name, or a file with a mistake. DataError: there is no such file.
    """
    if is_recipe_file(recipe):
        return _of_file(Path(recipe))
    name = str(recipe)
    if name not in recipe_names():
        raise _unknown(name)
    settings = _read(name)
    for words in ("cost", "reached"):
        settings.pop(words, None)
    base = settings.pop("extends", None)
    return {**load_recipe(base), **settings} if base else settings


def _of_file(path: Path) -> dict[str, Any]:
    # Imported here, since listing our own recipes needs none of it.
    from training.overlay import overlaid
    from training.recipes.file import read_recipe_file, require_complete

    settings = read_recipe_file(path)
    base = settings.pop("extends", None)
    if base is None:
        require_complete(path, settings)
        return settings
    if base not in recipe_names():
        raise unknown_name(f"recipe in {path}:", base, recipe_names())
    return overlaid(load_recipe(base), settings)


def recipe_cost(name: str) -> str:
    """What a recipe takes, in words; empty where nobody has measured or reckoned it."""
    return str(_read(name).get("cost", ""))


def recipe_reached(name: str) -> str:
    """What a recipe was seen to reach, in words; empty where nobody has measured it."""
    return str(_read(name).get("reached", ""))


def recommended_recipe(dataset: str, *, on_gpu: bool) -> str | None:
    """The recipe that we recommend for a data set; None where there is none."""
    name = f"{recipe_of(dataset)}-{'gpu' if on_gpu else 'hours'}"
    return name if name in recipe_names() else None


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((resources.files(__name__) / f"{name}.toml").read_text())


def recipe_of(dataset: str) -> str:
    """The recipe that comes with a data set; `folder:PATH` has one of its own."""
    return "folder" if dataset.startswith("folder:") else dataset


def _unknown(name: str) -> UsageError:
    old = _NETWORK_AND_METHOD.fullmatch(name)
    if old is None:
        return unknown_name("recipe", name, recipe_names())
    flags = " ".join(f"--{key} {value}" for key, value in old.groupdict().items() if value)
    return UsageError(f"There is no recipe '{name}' any more: flags say the same.", f"ducat train {flags}")
