"""`--network` and `--import-from` of commands that load a checkpoint: what of the user's own they may import."""

from __future__ import annotations

from pathlib import Path

import click

from ducat_serve.cli.manner_options import Function
from ducat_serve.networks import is_own
from ducat_serve.networks.allowed import allow, import_from


def allow_network(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """The callback of an option whose value may be imported, since a person gave it."""
    if value is not None and is_own(value):
        allow(value)
    return value


def allow_folder(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path | None:
    """The callback of an option that says where such code is imported from."""
    if value is not None:
        import_from(value)
    return value


def _allow_networks(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> None:
    for value in values:
        allow_network(_ctx, _param, value)


def own_network_option(function: Function) -> Function:
    """Add `--network` to a command that loads a checkpoint; one of two towers may have two such networks."""
    return click.option(
        "--network",
        metavar="PACKAGE.MODULE:FACTORY",
        multiple=True,
        expose_value=False,
        callback=_allow_networks,
        help="Of a checkpoint whose network is code of your own: that code, which is imported only if you name it; "
        "repeatable.",
    )(function)


def import_from_option(function: Function) -> Function:
    """Add `--import-from` to a command that takes a `package.module:factory`."""
    return click.option(
        "--import-from",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        expose_value=False,
        callback=allow_folder,
        help="Where a package.module:factory is imported from, beside the installed packages.",
    )(function)
