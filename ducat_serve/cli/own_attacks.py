"""`--attack package.module:function`: an attack of the user's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ducat_serve.cli.network_options import allow_network
from ducat_serve.networks.allowed import require_allowed

if TYPE_CHECKING:
    from training.attacks.own import AttackFunction


def allow_attacks(_ctx: click.Context, _param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """The callback of `--attack`: code that a person named may be imported."""
    for name in names:
        allow_network(_ctx, _param, name)
    return names


def attacks_of(names: Iterable[str]) -> tuple[str | AttackFunction, ...]:
    """Each once, with the function in the place of its name. Raises UsageError where one cannot be imported."""
    from ducat_serve.networks import is_own
    from ducat_serve.networks.own import import_callable

    return tuple(
        import_callable(name, require_allowed(name)) if is_own(name) else name
        for name in dict.fromkeys(names)
    )
