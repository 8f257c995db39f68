"""`--json`, `--quiet` and `--verbose`, which `ducat` and every command has. Imports neither rich nor pydantic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


def manner_options(function: Function) -> Function:
    """Add `--json`, `--quiet` and `--verbose`, which may stand before a command as well as behind it."""
    function = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_set_manner,
        help="Only results, warnings and errors.",
    )(function)
    function = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_set_manner, help="Say more on stderr."
    )(function)
    return click.option(
        "--json", is_flag=True, callback=_set_json, help="Print one JSON document on stdout."
    )(function)


def _set_manner(_ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    from ducat_serve.output import ask

    if wanted and parameter.name:
        ask(**{parameter.name: True})


def _set_json(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> bool:
    """Errors are reported after the call has ended, so that they have to be told by themselves."""
    if wanted:
        from ducat_serve.output import ask

        ask(as_json=True)
        ctx.find_root().obj.as_json = True
    return wanted
