"""The command line as Markdown: what `--help` prints, for every command and the commands below it."""

from __future__ import annotations

from collections.abc import Iterator

import click


def commands(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    """A heading and the help of a command, and then those of the commands below it."""
    yield f"{'#' * level} {context.command_path}"
    yield f"```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from commands(below, _context(below, name, context), min(level + 1, 4))


def command_line(command: click.Command, name: str) -> str:
    """The pages of `name` and of all commands below it."""
    return "\n\n".join(commands(command, _context(command, name, None), 2))


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    # As wide as a page of the site.
    return click.Context(
        command,
        info_name=name,
        parent=parent,
        max_content_width=80,
        terminal_width=80,
        **command.context_settings,
    )
