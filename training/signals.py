"""SIGINT, SIGTERM and SIGHUP ask a run to stop at the next safe place instead of killing it."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from types import FrameType
from typing import Any, Self


class Stopped(Exception):
    """A signal asked to stop; whoever holds the state of the run saves it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopSignal:
    """Remembers the first SIGINT or SIGTERM; a second SIGINT interrupts at once.

    SIGHUP counts too, unless it is ignored, as under nohup: the terminal is closed, and nothing can be printed there.

    It listens as a context manager. Outside of one nothing is received, so that an object made for the occasion stands
    for "never". In another thread than the main one, where Python lets nobody listen, nothing is received either.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def raise_if_received(self) -> None:
        """Raise Stopped where a signal came; the work at hand is given up, and done again on resumption."""
        if self.received is not None:
            raise Stopped(self.received)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if number == signal.SIGHUP:
            _leave_terminal()


def _leave_terminal() -> None:
    """What is printed from now on goes nowhere; it would raise, maybe before the state is saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        with contextlib.suppress(OSError):  # where there is no such output
            if stat.S_ISCHR(os.fstat(output).st_mode):
                # A terminal that is gone no longer says that it is one.
                os.dup2(nowhere, output)
    os.close(nowhere)
