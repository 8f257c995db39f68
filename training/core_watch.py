"""Whether other work keeps the threads of a run from the cores, which a run of several threads suffers from most.

Threads wait for each other after every operation, so that one of them without a core stops all. How long a thread could
have run and had no core is told by Linux (``/proc/PID/task/TID/schedstat``, Documentation/scheduler/sched-stats.rst).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_TASKS = Path("/proc/self/task")
_EVERY_SECONDS = 20.0
# Alone on a machine it is a hundredth; beside as many busy processes as cores a third and more.
_TOO_MUCH = 0.2

Times = dict[str, tuple[int, int]]


def thread_times(tasks: Path = _TASKS) -> Times:
    """For each thread of this process how long it ran and waited for a core, ns; empty where no system tells it."""
    times: Times = {}
    for file in tasks.glob("*/schedstat"):
        try:
            ran, waited, _ = map(int, file.read_text().split())
        except (OSError, ValueError):  # it has ended, or the system keeps no such count
            continue
        times[file.parent.name] = (ran, waited)
    return times


def waiting_share(before: Times, after: Times) -> float:
    """Of the time in which threads could have run, the share that they waited for a core; 0 where none could."""
    both = before.keys() & after.keys()
    ran = sum(after[thread][0] - before[thread][0] for thread in both)
    waited = sum(after[thread][1] - before[thread][1] for thread in both)
    return waited / max(ran + waited, 1)


class CoreWatch:
    """Says once in a run that its threads have too little of the cores, and what helps.

    Args:
        threads: that compute. One waits for no other.
        resume: the command that goes on with the run.
        times: as `thread_times`.
        clock: in seconds.
    """

    def __init__(
        self,
        threads: int,
        resume: str,
        times: Callable[[], Times] = thread_times,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threads, self._resume, self._times, self._clock = threads, resume, times, clock
        self._done = threads < 2
        self._since: tuple[float, Times] | None = None

    def doubt(self) -> str | None:
        """The sentence that is to be said now, asked after each step."""
        if self._done:
            return None
        now = self._clock()
        if self._since is None:
            self._since = (now, self._times())
            return None
        before, times = self._since
        if now - before < _EVERY_SECONDS:
            return None
        self._since = (now, self._times())
        share = waiting_share(times, self._since[1])
        if share < _TOO_MUCH:
            return None
        self._done = True
        return (
            f"other work on this machine kept the {self._threads} threads of this run from the cores for {share:.0%} "
            f"of their time, and each waits for the others. A small network is faster with one: Ctrl-C, then "
            f"{self._resume} --threads 1"
        )
