"""The one place that prints. People read stderr.

Under `--json` stdout is exactly one JSON document, the result, and every line of stderr is a JSON object with the key
`event`: what people would have read, as it happens. With DUCAT_EVENTS=text in the environment stderr stays for people.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_LONGEST_NAME = 24  # characters
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidirectional, zero width), surrogates, line ends


class Advance(Protocol):
    """Moves a progress bar; ``note`` is shown beside it."""

    def __call__(self, steps: float = 1, /, note: str = "") -> None: ...


class Output:
    """Prints messages, tables, progress and results for one command; ``silent`` prints nothing but errors."""

    def __init__(self, as_json: bool = False, *, silent: bool = False) -> None:
        self.as_json, self.silent = as_json, silent
        # A command that runs others for their results (`ducat demo`) still has people reading along.
        self._events_as_json = as_json and os.environ.get("DUCAT_EVENTS") != "text"
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=silent)

    def say(self, message: str) -> None:
        """One line for people."""
        self.event("message", message, text=message)

    def warn(self, message: str) -> None:
        """One line that should not be overlooked."""
        self.event("warning", f"Warning: {message}", style="yellow", text=message)

    def fail(self, message: str, next_step: str | None) -> None:
        """An error: its cause, then the next command."""
        self.event("error", f"Error: {message}", style="bold red", text=message, next=next_step)
        if next_step and not self._events_as_json:
            self.console.print(f"Next: {visible(next_step)}", markup=False)

    def event(self, name: str, message: str, *, style: str | None = None, **fields: Any) -> None:
        """Something happened: ``message`` for people, ``fields`` for machines."""
        if not self._events_as_json:
            self.console.print(visible(message, keep="\n\t"), style=style, markup=False)
        elif not self.silent:
            sys.stderr.write(json.dumps({"event": name, **fields}, default=str) + "\n")
            sys.stderr.flush()

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table for people; machines read the result."""
        if self._events_as_json:
            return
        table = Table(title=visible(title), title_justify="left", title_style="bold")
        cells = [[visible(str(cell)) for cell in row] for row in rows]
        # A short name that is broken over two lines cannot be copied; longer first cells, such as paths, have to be.
        is_named = all(len(row[0]) <= _LONGEST_NAME for row in cells)
        for number, column in enumerate(columns):
            table.add_column(column, overflow="fold", no_wrap=is_named and number == 0)
        for row in cells:
            table.add_row(*row)
        self.console.print(table, markup=False, soft_wrap=False)

    def result(self, document: dict[str, Any]) -> None:
        """The command's result: on stdout under `--json`, nowhere otherwise."""
        if self.as_json and not self.silent:
            json.dump(document, sys.stdout, indent=2, sort_keys=True, allow_nan=False)
            sys.stdout.write("\n")
            sys.stdout.flush()

    @contextlib.contextmanager
    def progress(self, label: str, total: float) -> Iterator[Advance]:
        """A progress bar on a terminal; nothing elsewhere, where plain lines tell the story."""
        if not self.console.is_terminal or self._events_as_json or self.silent:
            yield _ignore_progress
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(label, total=total, note="")

            def advance(steps: float = 1, /, note: str = "") -> None:
                bar.update(task, advance=steps, note=note)

            yield advance


def visible(text: str, keep: str = "") -> str:
    """Text in which every character can be seen: what a terminal obeys instead of showing becomes an escape.

    Names of classes and files come from strangers. Beside control characters, those count that turn the direction of
    the text around them. ``keep`` are characters that stay.
    """
    return "".join(
        char if char in keep or unicodedata.category(char) not in _UNSEEN else ascii(char)[1:-1]
        for char in text
    )


def _ignore_progress(_steps: float = 1, /, note: str = "") -> None:
    pass
