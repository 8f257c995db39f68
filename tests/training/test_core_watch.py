"""A run whose threads get too little of the cores says so, once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from training.core_watch import CoreWatch, Times, thread_times, waiting_share


def watch(times: list[Times], threads: int = 2) -> list[str | None]:
    """What is said after each of steps that are 15 s apart, at which the threads had these times."""
    clock = iter(range(0, 1000, 15))
    now = iter(times)
    watched = CoreWatch(threads, "ducat train --resume RUN", lambda: next(now), lambda: float(next(clock)))
    return [watched.doubt() for _ in range(5)]


def test_it_is_said_once_and_only_where_threads_waited() -> None:
    s = 10**9
    crowded: list[Times] = [{"1": (0, 0), "2": (0, 0)}, {"1": (9 * s, 3 * s), "2": (9 * s, 9 * s)}]
    said = watch(crowded)
    assert [text is not None for text in said] == [False, False, True, False, False]
    assert said[2] is not None
    assert "kept the 2 threads of this run from the cores for 40% of their time" in said[2]
    assert said[2].endswith("ducat train --resume RUN --threads 1")
    assert watch([{"1": (0, 0)}, {"1": (9 * s, s)}, {"1": (18 * s, 2 * s)}]) == [None] * 5
    # Quiet at first, crowded later.
    later = watch([{"1": (0, 0)}, {"1": (9 * s, 0)}, {"1": (10 * s, 9 * s)}])
    assert [text is not None for text in later] == [False, False, False, False, True]
    assert watch(crowded, threads=1) == [None] * 5, "one thread waits for no other"


def test_threads_that_came_or_went_do_not_count() -> None:
    assert waiting_share({"1": (0, 0), "2": (0, 5)}, {"1": (3, 1), "3": (0, 9)}) == 0.25
    assert waiting_share({}, {"1": (3, 1)}) == 0


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert thread_times(tmp_path / "none") == {}
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "schedstat").write_text("\n")
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "schedstat").write_text("12 34 5\n")
    assert thread_times(tmp_path) == {"8": (12, 34)}


@pytest.mark.integration
@pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="only Linux tells how long threads wait"
)
def test_a_busy_neighbour_is_seen() -> None:
    """Two processes on one core: each waits for half of the time. Alone nothing is said to have waited as long."""
    program = textwrap.dedent(
        """
        import os, subprocess, sys, time
        from training.core_watch import thread_times, waiting_share
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            time.sleep(0.3)
            before, until = thread_times(), time.process_time() + 1
            while time.process_time() < until:
                pass
            print(waiting_share(before, thread_times()))
        finally:
            other.kill()
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert float(answer.stdout) > 0.3
