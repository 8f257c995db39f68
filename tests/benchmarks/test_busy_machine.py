"""What benchmarks/busy_machine.py calls fair, and that it reads the CPU time of a process that has ended."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from busy_machine import Epoch, cpu_seconds, has_ended, times_fair_share


@pytest.mark.parametrize(
    ("threads", "share", "seconds", "times"),
    [
        (1, 2 / 3, 6.0, 1.0),  # one thread and two busy processes on two cores: 2 / 3 of a core each
        (2, 0.5, 4.0, 1.0),
        (2, 0.5, 8.0, 2.0),
        (1, 0.1, 60.0, 1.5),  # whatever else runs there
    ],
)
def test_a_thread_may_hope_for_what_a_busy_process_had(
    threads: int, share: float, seconds: float, times: float
) -> None:
    beside = Epoch(seconds, 4.0, share, ended=True)
    assert times_fair_share(beside, cpu_alone=4.0, threads=threads) == pytest.approx(times)


@pytest.mark.integration
def test_the_cpu_time_of_an_ended_process_is_there_until_it_is_waited_for() -> None:
    work = "import time\nwhile time.process_time() < 0.2: pass"
    process = subprocess.Popen([sys.executable, "-c", work])
    while not has_ended(process.pid):
        time.sleep(0.01)
    assert cpu_seconds(process.pid) >= 0.15
    assert process.wait() == 0
