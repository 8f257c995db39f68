"""The one place that prints: the result on stdout, everything else on stderr.

`Results` is what a command was asked for, so that `ducat networks | grep resnet` works. `Notes` is what people read
while it runs: progress, warnings, errors, the next command. `Output` is both.

Under `--json` stdout is exactly one JSON document, and every line of stderr is a JSON object with the key `event`: what
people would have read, as it happens. With DUCAT_EVENTS=text in the environment stderr stays for people.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
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

from ducat_serve.tables import boxed, plain_lines

_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidirectional, zero width), surrogates, line ends
# They are part of how words are written, in Persian or Hindi, and change nothing around them.
_JOINERS = "\u200c\u200d"
_COMMANDS = ("Next: ", "$ ")  # what a line begins with that is to be pasted into a shell
_LOG_SECONDS = 60.0  # between two lines of progress where there is no terminal


@dataclass(frozen=True)
class Manner:
    """How much is printed, and for whom: the global options of `ducat`."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False


_MANNER: ContextVar[Manner] = ContextVar("manner", default=Manner())  # noqa: B039 (frozen)


def ask(**asked: bool) -> None:
    """Print in this manner from here on, in this context: fields of `Manner`, beside those asked for already."""
    current = vars(_MANNER.get())
    _MANNER.set(Manner(**{name: asked.get(name, False) or value for name, value in current.items()}))


class Advance(Protocol):
    """Moves a progress bar; ``note`` is shown beside it."""

    def __call__(self, steps: float = 1, /, note: str = "") -> None: ...


class Notes:
    """What people read on stderr while a command runs, or events for machines.

    ``quiet`` leaves warnings and errors; ``verbose`` adds details; ``silent`` prints nothing at all.
    """

    def __init__(self, *, as_events: bool, quiet: bool, verbose: bool, silent: bool) -> None:
        self.as_events, self.quiet, self.verbose, self.silent = as_events, quiet, verbose, silent
        self.console = Console(stderr=True, highlight=False, quiet=silent)

    def event(self, name: str, message: str, *, style: str | None = None, **fields: Any) -> None:
        """Something happened: ``message`` for people, ``fields`` for machines."""
        if self.silent or (self.quiet and name not in ("warning", "error")):
            return
        if self.as_events:
            sys.stderr.write(json.dumps({"event": name, **fields}, default=str) + "\n")
            sys.stderr.flush()
        else:
            _print(self.console, message, style)

    @contextlib.contextmanager
    def progress(self, label: str, total: float) -> Iterator[Advance]:
        """A progress bar on a terminal; elsewhere a line a minute."""
        if self.silent or self.quiet:
            yield _ignore_progress
        elif self.as_events or not self.console.is_terminal:
            yield _LineAMinute(self, label, total)
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
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


class Results:
    """What a command was asked for, on stdout: text and tables for people, or one JSON document.

    Tables are boxed on a terminal that is wide enough, and plain lines elsewhere. A command that runs others for their
    JSON (`ducat demo`) still has people reading along; ``for_people`` is where they read.
    """

    def __init__(self, *, as_json: bool, for_people: Console | None, silent: bool) -> None:
        self.as_json, self.console, self.silent = as_json, for_people, silent

    def text(self, message: str) -> None:
        """Lines for people."""
        if self.console is not None:
            _print(self.console, message)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table for people; nothing under `--json`. Without names of columns it has no header."""
        if self.console is None:
            return
        lines = [[visible(str(cell)) for cell in row] for row in rows]
        if title:
            _print(self.console, title, "bold")
        box = boxed(columns, lines, self.console.width) if self.console.is_terminal else None
        if box is not None:
            self.console.print(box)
        else:
            _print(self.console, "\n".join(plain_lines(columns, lines)))

    def document(self, document: dict[str, Any], indent: int | None = 2) -> None:
        """The command's result under `--json`; nothing otherwise. ``indent``: None for one line."""
        if self.as_json and not self.silent:
            # Whole before its first byte is printed: what cannot be JSON would leave half a document behind.
            text = json.dumps(document, indent=indent, sort_keys=True, allow_nan=False)
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


class Output:
    """All that one command prints; ``silent`` prints nothing but what another process prints already."""

    def __init__(self, as_json: bool = False, *, silent: bool = False) -> None:
        asked = _MANNER.get()
        as_json = as_json or asked.as_json
        as_events = as_json and os.environ.get("DUCAT_EVENTS") != "text"
        self.notes = Notes(as_events=as_events, quiet=asked.quiet, verbose=asked.verbose, silent=silent)
        for_people: Console | None = self.notes.console if as_json else Console(highlight=False, quiet=silent)
        if as_events or (as_json and asked.quiet):
            for_people = None
        self.results = Results(as_json=as_json, for_people=for_people, silent=silent)

    @property
    def as_json(self) -> bool:
        """Whether the result is a JSON document."""
        return self.results.as_json

    @property
    def on_terminal(self) -> bool:
        """Whether somebody reads the result as it is printed, and no file or program."""
        return self.results.console is not None and self.results.console.is_terminal

    def say(self, message: str) -> None:
        """A note for people: what is going on."""
        self.notes.event("message", message, text=message)

    def detail(self, message: str) -> None:
        """A note for those who asked for more (`-v`)."""
        if self.notes.verbose:
            self.notes.event("detail", message, style="dim", text=message)

    def warn(self, message: str) -> None:
        """A note that should not be overlooked."""
        self.notes.event("warning", f"Warning: {message}", style="yellow", text=message)

    def next(self, command: str) -> None:
        """What one would do next; see `errors.command_line` for one with paths in it."""
        self.say(f"Next: {command}")

    def fail(self, message: str, next_step: str | None) -> None:
        """An error: its cause, then the next command."""
        text = f"Error: {message}"
        self.notes.event("error", text, style="bold red", text=message, next=next_step)
        if next_step and not self.notes.as_events and not self.notes.silent:
            _print(self.notes.console, f"Next: {next_step}")

    def event(self, name: str, message: str, **fields: Any) -> None:
        """A note with ``fields`` for machines."""
        self.notes.event(name, message, **fields)

    def progress(self, label: str, total: float) -> contextlib.AbstractContextManager[Advance]:
        """A progress bar on a terminal; elsewhere a line a minute."""
        return self.notes.progress(label, total)

    def text(self, message: str) -> None:
        """Lines of the result, for people."""
        self.results.text(message)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table of the result, for people."""
        self.results.table(title, columns, rows)

    def result(self, document: dict[str, Any]) -> None:
        """The result for machines: one JSON document, under `--json` only."""
        self.results.document(document)

    def result_line(self, document: dict[str, Any]) -> None:
        """The same in one line, where other lines of JSON follow on stdout."""
        self.results.document(document, indent=None)


class _LineAMinute:
    """Progress for a log."""

    def __init__(self, notes: Notes, label: str, total: float) -> None:
        self._notes, self._label, self._total = notes, label, total
        self._done, self._said = 0.0, time.monotonic()

    def __call__(self, steps: float = 1, /, note: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._said < _LOG_SECONDS:
            return
        self._said = now
        share = f"{self._label}: {self._done / self._total:.0%}"
        message = f"{share}, {note}" if note else share
        self._notes.event(
            "progress", message, label=self._label, done=self._done, total=self._total, note=note
        )


def visible(text: str, keep: str = "") -> str:
    """Text in which every character can be seen: what a terminal obeys instead of showing becomes an escape.

    Names of classes and files come from strangers. Beside control characters, those count that turn the direction of
    the text around them. ``keep`` are characters that stay.
    """
    return "".join(
        char
        if char in keep or char in _JOINERS or unicodedata.category(char) not in _UNSEEN
        else ascii(char)[1:-1]
        for char in text
    )


def _print(console: Console, message: str, style: str | None = None) -> None:
    """On a terminal, lines are wrapped between words, but no commands; elsewhere they stay as long as they are."""
    text = visible(message, keep="\n\t")
    if not console.is_terminal:
        if not console.quiet:
            console.file.write(text + "\n")  # `print` would expand tabs
            console.file.flush()
        return
    text = "\n".join(_wrapped(line, console.width) for line in text.split("\n"))
    console.print(text, style=style, markup=False, soft_wrap=True)


def _wrapped(line: str, width: int) -> str:
    if line.startswith(_COMMANDS):  # pasted with a line break in it, half of it would run
        return line
    return textwrap.fill(
        line,
        width,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
    )


def _ignore_progress(_steps: float = 1, /, note: str = "") -> None:
    pass
