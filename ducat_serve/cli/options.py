"""Options and parameter types that several commands share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ducat_serve.cli.bad_values import remember_config
from ducat_serve.cli.manner_options import Function, manner_options
from ducat_serve.cli.variables import refuse_unknown_variables
from ducat_serve.errors import UsageError, near_name, unknown_name
from ducat_serve.threat_model import parse_size
from ducat_serve.toml_file import read_toml

if TYPE_CHECKING:
    from ducat_serve.bundled import Kind


class PixelSize(click.ParamType[float]):
    """A perturbation size such as `8/255`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


PIXEL_SIZE = PixelSize()


class FiniteRange(click.FloatRange):
    """A number in a range; `inf` and `nan`, which no comparison with a bound finds out, are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class ModelPath(click.ParamType[Path]):
    """A model: the name of a bundled one, a file or a folder; ``kind`` is the file of a bundled one that is taken."""

    name = "model"

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ARG002
        from ducat_serve.bundled import model_path

        return model_path(value, self.kind)


class Stem(click.ParamType[Path]):
    """A file's path without its suffix, for what is written as several kinds; that of a picture is dropped."""

    name = "stem"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        stem = path.with_suffix("") if path.suffix in (".png", ".svg") else path
        if not stem.name:
            self.fail(f"'{value}' names no file.", param, ctx)
        return stem


def common(function: Function) -> Function:
    """Add what every command has: `--json`, `--quiet`, `--verbose` and `--config`."""
    function = manner_options(function)
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="DUCAT_CONFIG",
        is_eager=True,
        expose_value=False,
        callback=_load_config,
        help="TOML file with defaults, a table per command: [train] epochs = 30.",
    )(function)


def device_option(function: Function) -> Function:
    """Add `--device auto|cpu|cuda`."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        envvar="DUCAT_DEVICE",
        show_envvar=True,
        help="auto takes the GPU if it works, else the CPU, and says which; cuda fails without a GPU.",
    )(function)


class InheritedOption(click.Option):
    """An option of a group and of its subcommands, which may stand before a subcommand as well as behind it."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        """Where both were given, the one that was given more directly holds: a flag before a variable or a file."""
        value, source = super().consume_value(ctx, opts)
        group, name = ctx.parent, self.name or ""
        of_group = None if group is None else group.get_parameter_source(name)
        if group is None or of_group is None or _DIRECTNESS.index(source) <= _DIRECTNESS.index(of_group):
            return value, source
        return group.params[name], of_group


_DIRECTNESS = (
    ParameterSource.PROMPT,
    ParameterSource.COMMANDLINE,
    ParameterSource.ENVIRONMENT,
    ParameterSource.DEFAULT_MAP,
    ParameterSource.DEFAULT,
)


def data_options(function: Function) -> Function:
    """Add `--data-dir` and `--offline`."""
    function = click.option(
        "--offline",
        cls=InheritedOption,
        is_flag=True,
        envvar="DUCAT_OFFLINE",
        show_envvar=True,
        help="Never download.",
    )(function)
    return data_dir_option(function)


def data_dir_option(function: Function) -> Function:
    """Add `--data-dir` alone, where nothing is ever downloaded."""
    return click.option(
        "--data-dir",
        cls=InheritedOption,
        type=click.Path(path_type=Path, file_okay=False),
        envvar="DUCAT_DATA",
        show_envvar=True,
        help="Where archives are, or are downloaded to. [default: the user's cache folder]",
    )(function)


def _load_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    refuse_unknown_variables(ctx)
    if path is None:
        return
    document = read_toml(path, f"the config file {path}", f"{ctx.command_path} --help")
    from ducat_serve.cli.main import COMMANDS

    for table, content in document.items():
        if table not in COMMANDS:
            raise _outside_of_tables(path, table, content) or unknown_name(
                f"table in {path}:", table, COMMANDS
            )
    group = _of_table(ctx)
    name = group.name or ""
    values = document.get(name, {})
    if not isinstance(values, dict):
        raise UsageError(f"{path}: '{name}' must be a table.", f"write [{name}] and the options below it")
    commands = [group, *(group.commands.values() if isinstance(group, click.Group) else ())]
    known = {option: parameter for command in commands for option, parameter in _parameters(command).items()}
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        option = key.replace("-", "_")
        if option not in known:
            raise unknown_name(f"key in {path}:", key, (n.replace("_", "-") for n in known))
        if not _fits(value, known[option]):
            raise UsageError(
                f"{path}: '{key}' in [{name}] must be a text, a finite number or, for a flag, true or false, and a "
                "list of them only where the option takes several.",
                f"{ctx.command_path} --help",
            )
        single = known[option].multiple and not isinstance(value, list)
        defaults[known[option].name or ""] = [value] if single else value
    of_subcommands = {command.name: defaults for command in commands[1:]} if ctx.command is group else {}
    remember_config(ctx, path, name)
    ctx.default_map = {**(ctx.default_map or {}), **defaults, **of_subcommands}


def _of_table(ctx: click.Context) -> click.Command:
    """The command whose table holds: a subcommand has none of its own, and shares that of its group."""
    is_subcommand = ctx.parent is not None and ctx.parent.parent is not None
    return ctx.parent.command if ctx.parent is not None and is_subcommand else ctx.command


def _outside_of_tables(path: Path, key: str, value: object) -> UsageError | None:
    """The error for a key that stands above all tables."""
    if isinstance(value, dict):
        return None
    from ducat_serve.cli.main import COMMANDS, cli

    tables: dict[str, list[str]] = {}  # of each option, by its name
    for name in COMMANDS:
        with contextlib.suppress(ImportError):  # a command whose packages are not installed
            command = cli.get_command(click.Context(cli), name)
            for option in _parameters(command) if command is not None else ():
                tables.setdefault(option, []).append(f"[{name}]")
    having = tables.get(key.replace("-", "_"))
    if having is None:
        near = near_name(key.replace("-", "_"), tables)
        hint = f" Did you mean '{near.replace('_', '-')}'?" if near else ""
        return UsageError(
            f"{path}: '{key}' is an option of no command, and stands outside of every table.{hint}",
            "put each option below the table of its command, such as [train]",
        )
    return UsageError(
        f"{path}: '{key}' belongs to no command, since it stands outside of every table.",
        f"put it below {' or '.join(having)}",
    )


def _parameters(command: click.Command) -> dict[str, click.Parameter]:
    """What can stand in a file, in each of its spellings: all but the file itself."""
    return {
        spelling: parameter
        for parameter in command.params
        if parameter.name and parameter.name != "config"
        for spelling in (parameter.name, *_long_spellings(parameter))
    }


def _long_spellings(parameter: click.Parameter) -> list[str]:
    return [name[2:].replace("-", "_") for name in parameter.opts if name.startswith("--")]


def _fits(value: object, parameter: click.Parameter) -> bool:
    """Whether an option could have this value; whether it may is the option's own business."""
    if isinstance(value, list):
        takes_list = (
            parameter.multiple or parameter.nargs != 1 or getattr(parameter.type, "takes_list", False)
        )
        return takes_list and all(map(_is_plain, value))
    if isinstance(value, bool):
        return isinstance(parameter.type, click.types.BoolParamType)
    return _is_plain(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, bool):  # which is an int for Python
        return False
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
