"""Recipes: complete settings of `ducat train` by name, one TOML file each; `extends` names the one it builds on."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

from ducat_serve.errors import unknown_name


def recipe_names() -> list[str]:
    """All recipes, sorted."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe, with those that it extends. Raises UsageError for an unknown name."""
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    recipe = tomllib.loads((resources.files(__name__) / f"{name}.toml").read_text())
    base = recipe.pop("extends", None)
    return {**load_recipe(base), **recipe} if base else recipe


def recipe_of(dataset: str) -> str:
    """The recipe that comes with a data set; `folder:PATH` has one of its own."""
    return "folder" if dataset.startswith("folder:") else dataset
