"""What is said of a value that an option does not take, wherever it was given."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.core import ParameterSource

_CONFIG = "ducat_serve.config"  # in the `meta` of a context, which its subcommands share
# What click calls its types, and what people call them.
_WORDS = {
    "is not a valid integer range": "is not a whole number",
    "is not a valid integer": "is not a whole number",
    "is not a valid float range": "is not a number",
    "is not a valid float": "is not a number",
}


def remember_config(ctx: click.Context, path: Path, table: str) -> None:
    """Note which table of which file gives the defaults of this call."""
    ctx.meta[_CONFIG] = f"{path}, [{table}]"


def explained(error: click.BadParameter) -> str:
    """The sentence for people, which names the file or the variable where nobody typed the value."""
    sentence, place = error.format_message(), _place(error)
    for clicks, ours in _WORDS.items():
        sentence = sentence.replace(clicks, ours)
    return sentence if place is None or place in sentence else f"{place}: {sentence}"


def _place(error: click.BadParameter) -> str | None:
    """The variable or the file that an option has its value from; None where it was typed."""
    ctx, option = error.ctx, error.param
    if ctx is None or option is None or option.name is None:
        return None
    source = ctx.get_parameter_source(option.name)
    if source is ParameterSource.ENVIRONMENT:
        given = [option.envvar] if isinstance(option.envvar, str) else [*(option.envvar or ())]
        own = f"{ctx.auto_envvar_prefix}_{option.name.upper()}"
        return next((name for name in given if os.environ.get(name)), own)
    return ctx.meta.get(_CONFIG) if source is ParameterSource.DEFAULT_MAP else None
