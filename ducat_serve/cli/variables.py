"""Environment variables that were meant for an option and name none."""

from __future__ import annotations

import os

import click

from ducat_serve.errors import UsageError, near_name

# Its settings have more names than its options; the server looks at them itself (service/settings.py).
_SERVER = "serve"


def refuse_unknown_variables(ctx: click.Context) -> None:
    """Raise UsageError for a DUCAT_<COMMAND>_... that is no option of the command, as for a key of a config file."""
    prefix = f"{ctx.auto_envvar_prefix}_"
    if ctx.command.name == _SERVER or ctx.auto_envvar_prefix is None:
        return
    known = {prefix + (parameter.name or "").upper() for parameter in ctx.command.params}
    for parameter in ctx.command.params:  # of an option with two spellings, those of both
        known |= {parameter.envvar} if isinstance(parameter.envvar, str) else set(parameter.envvar or ())
    if isinstance(ctx.command, click.Group):  # variables of `recipes show` are looked at there
        known |= {
            name
            for name in os.environ
            for sub in ctx.command.commands
            if name.startswith(f"{prefix}{sub.upper()}_")
        }
    for name in sorted(os.environ):
        if name.startswith(prefix) and name not in known:
            near = near_name(name, known)
            raise UsageError(
                f"{name} is set, but `{ctx.command_path}` has no such option."
                + (f" Did you mean {near}?" if near else ""),
                f"correct or unset it; `{ctx.command_path} --help` lists the options",
            )
