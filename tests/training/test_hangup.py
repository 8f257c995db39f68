"""A terminal that is closed, and a launcher that is killed: the state is saved, and no process is left behind."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.signals import StopSignal

pytestmark = pytest.mark.integration

# Who runs the tests under nohup hands on an ignored SIGHUP; nobody waits for ever where it does not come.
_RUN = """
import signal, sys, time
from training.signals import StopSignal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.alarm(60)
with StopSignal() as stop:
    print("begun", flush=True)
    while stop.received is None:
        time.sleep(0.01)
    print("the last step is done", flush=True)
sys.exit(100 + stop.received)
"""

_LAUNCHER = """
import os, sys, time
from pathlib import Path
from training.distributed.launch import _start
sys.executable = sys.argv[1]
print(*(process.pid for process in _start(2, [], os.environ, [Path(os.devnull)] * 2)), flush=True)
time.sleep(60)
"""


def test_a_run_whose_terminal_is_closed_ends_as_after_sigterm() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", _RUN])
    assert b"begun" in os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 100 + signal.SIGHUP


def test_nohup_is_obeyed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell the processes")
def test_no_process_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    launcher = subprocess.Popen([sys.executable, "-c", _LAUNCHER, str(program)], stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    pids = [int(pid) for pid in launcher.stdout.readline().split()]
    assert len(pids) == 2
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether it computes on; one that ended may still wait for somebody to take notice."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
