"""The one place that prints. People read stderr; `--json` puts exactly one JSON document on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
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


class Advance(Protocol):
    """Moves a progress bar; ``note`` is shown beside it."""

    def __call__(self, steps: float = 1, /, note: str = "") -> None: ...


class Output:
    """Prints messages, tables, progress and results for one command."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, message: str) -> None:
        """One line for people."""
        self.console.print(message, markup=False)

    def warn(self, message: str) -> None:
        """One line that should not be overlooked."""
        self.console.print(f"Warning: {message}", style="yellow", markup=False)

    def fail(self, message: str, next_step: str | None) -> None:
        """An error: its cause, then the next command."""
        self.console.print(f"Error: {message}", style="bold red", markup=False)
        if next_step:
            self.console.print(f"Next: {next_step}", markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table for people."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self.console.print(table, markup=False, soft_wrap=False)

    def result(self, document: dict[str, Any]) -> None:
        """The command's result: on stdout under `--json`, nowhere otherwise."""
        if self.as_json:
            json.dump(document, sys.stdout, indent=2, sort_keys=True, allow_nan=False)
            sys.stdout.write("\n")
            sys.stdout.flush()

    @contextlib.contextmanager
    def progress(self, label: str, total: float) -> Iterator[Advance]:
        """A progress bar on a terminal; nothing elsewhere, where plain lines tell the story."""
        if not self.console.is_terminal:
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


def _ignore_progress(_steps: float = 1, /, note: str = "") -> None:
    pass
