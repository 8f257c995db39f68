"""`ducat recipes`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

import click

from ducat_serve.cli.completion import complete_recipes
from ducat_serve.cli.options import common
from ducat_serve.errors import UsageError, command_line
from ducat_serve.output import Output, visible


@click.group("recipes", invoke_without_command=True)
@common
@click.pass_context
def command(ctx: click.Context, json: bool) -> None:
    """List, show and copy the settings that `ducat train` starts from.

    \b
    Example:
      ducat recipes
      ducat recipes show cifar10
      ducat recipes copy cifar10 mine.toml
      ducat train --config mine.toml --method trades
    """
    if ctx.invoked_subcommand is not None:
        return
    from training.recipes import load_recipe, recipe_cost, recipe_names, recipe_reached

    output = Output(json)
    recipes = {name: load_recipe(name) for name in recipe_names()}
    costs = {name: recipe_cost(name) for name in recipes}
    reached = {name: recipe_reached(name) for name in recipes}
    rows = [
        (name, f"{r['network']}, {r['method']}, {r['epochs']} epochs", costs[name], reached[name])
        for name, r in recipes.items()
    ]
    output.table("", ("name", "trains", "cost", "reached"), rows)
    output.result({"recipes": recipes, "costs": costs, "reached": reached})


@command.command("show")
@click.argument("name", shell_complete=complete_recipes)
@common
def show(name: str, json: bool) -> None:
    """Show every setting of the recipe NAME.

    \b
    Example:
      ducat recipes show tiny-imagenet-quick
    """
    from training.recipes import load_recipe

    output = Output(json)
    recipe = load_recipe(name)
    output.text(_as_config(recipe).rstrip())
    output.result({"name": name, "recipe": recipe})


@command.command("copy")
@click.argument("name", shell_complete=complete_recipes)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@common
def copy(name: str, file: Path, json: bool) -> None:
    """Write the recipe NAME to FILE, to be changed and given to `ducat train --config`.

    \b
    Example:
      ducat recipes copy digits mine.toml
    """
    from ducat_serve import atomic
    from training.recipes import load_recipe

    output = Output(json)
    if file.exists():
        raise UsageError(f"{file} exists already.", "choose another name, or delete it")
    recipe = load_recipe(name)
    dataset = [] if "dataset" in recipe else ["--dataset", "folder:PATH"]
    used = command_line("ducat", "train", "--config", file.name, *dataset)
    atomic.write_text(file, f"# From the recipe {name}; {visible(used)}\n" + _as_config(recipe))
    output.next(command_line("ducat", "train", "--config", file, *dataset))
    output.result({"name": name, "file": str(file)})


def _as_config(recipe: dict[str, Any]) -> str:
    """The `[train]` table of a config file. Strings, numbers, booleans and lists are the same in JSON and TOML."""
    lines = (f"{key.replace('_', '-')} = {json_format.dumps(value)}" for key, value in recipe.items())
    return "\n".join(["[train]", *lines]) + "\n"
