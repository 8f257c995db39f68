"""`--quiet` and `--verbose`, which `ducat` itself and every command has. Imports neither rich nor pydantic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


def manner_options(function: Function) -> Function:
    """Add `--quiet` and `--verbose`, which may stand before a command as well as behind it."""
    function = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_set_manner,
        help="Only results, warnings and errors.",
    )(function)
    return click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_set_manner, help="Say more on stderr."
    )(function)


def _set_manner(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    from ducat_serve.output import manner

    if wanted and parameter.name:
        ctx.with_resource(manner(**{parameter.name: True}))
