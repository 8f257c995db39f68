"""Headings between the options of a command, in its source as in its `--help`."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import click

from ducat_serve.cli.manner_options import Function

_HEADINGS: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()


def heading(title: str) -> Callable[[Function], Function]:
    """A decorator that puts ``title`` above the options below it, down to the next heading."""

    def put(function: Function) -> Function:
        for parameter in getattr(function, "__click_params__", ()):  # those below are there already
            _HEADINGS.setdefault(parameter, title)
        return function

    return put


def stacked(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Options and headings as one decorator, in the order in which they would stand above a function."""

    def add(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


class CommandWithHeadings(click.Command):
    """Lists its options below their headings. click's own `--help` comes last, under the last heading."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        title = ""
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                title = _HEADINGS.get(parameter, title)
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
