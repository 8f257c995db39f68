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
      ducat train --recipe mine.toml --method trades
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
    output.text(_as_toml(recipe).rstrip())
    output.result({"name": name, "recipe": recipe})


@command.command("copy")
@click.argument("name", shell_complete=complete_recipes)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@common
def copy(name: str, file: Path, json: bool) -> None:
    """Write the recipe NAME to FILE, to be changed and given to `ducat train --recipe`.

    What is derived from a recipe, such as the milestones of a shorter run, is derived from the file in the same way.

    \b
    Example:
      ducat recipes copy digits mine.toml
      ducat train --recipe mine.toml --epochs 30
    """
    from ducat_serve import atomic
    from training.recipes import is_recipe_file, load_recipe

    output = Output(json)
    if not is_recipe_file(str(file)):
        raise UsageError(
            f"{file}: the name of a recipe's file ends in .toml, by which `ducat train --recipe` knows it.",
            command_line("ducat", "recipes", "copy", name, f"{file}.toml"),
        )
    if file.exists():
        raise UsageError(f"{file} exists already.", "choose another name, or delete it")
    recipe = load_recipe(name)
    needed = [] if "dataset" in recipe else ["--dataset", "folder:PATH"]
    if "backbone_lr" in recipe:  # made for weights that are trained already
        needed.append("--pretrained")
    used = command_line("ducat", "train", "--recipe", file.name, *needed)
    atomic.write_text(file, f"# From the recipe {name}; {visible(used)}\n" + _as_toml(recipe))
    output.next(command_line("ducat", "train", "--recipe", file, *needed))
    output.result({"name": name, "file": str(file)})


def _as_toml(recipe: dict[str, Any]) -> str:
    """A recipe as a file has it. Strings, numbers, booleans and lists are the same in JSON and TOML."""
    lines = (f"{key.replace('_', '-')} = {json_format.dumps(value)}" for key, value in recipe.items())
    return "\n".join(lines) + "\n"
