"""`--devices N` of `ducat train` and `evaluate`: start a process per device of this machine, and end them together.

Not torch.distributed.elastic, which loses exit codes that are part of this command's interface (docs/dependencies.md).
Under torchrun (several machines, SLURM, Kubernetes) the same command joins instead.
"""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ducat_serve.errors import DucatError
from ducat_serve.output import Output
from ducat_serve.threads import usable_cpus
from training.signals import StopSignal

_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_GRACE_SECONDS = 15.0  # for the others to save and end by themselves once one has ended


def launch(
    count: int, arguments: Sequence[str], environment: Mapping[str, str], output: Output, again: str
) -> int:
    """Run `ducat ARGUMENTS` in ``count`` processes; returns their exit code.

    Args:
        environment: as the user has it; without a number of threads in it, the processes share the CPUs.
        again: the command that goes on after a process was killed.

    Raises:
        DucatError: a process was killed; the last saved state is kept.
    """
    with tempfile.TemporaryDirectory() as scratch, StopSignal() as stop:
        errors = [Path(scratch) / f"{rank}.stderr" for rank in range(count)]
        processes = _start(count, arguments, environment, errors)
        try:
            failed = _wait(processes, stop)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failed is None:
            return 0
        code = processes[failed].returncode
        if failed != 0 and processes[0].returncode != code:
            sys.stderr.write(errors[failed].read_text())
        if code < 0:
            name = signal.Signals(-code).name
            raise DucatError(
                f"Process {failed} of {count} was killed by {name}; the others were stopped. The last saved state is "
                "kept.",
                again,
            )
        output.say(f"Process {failed} of {count} ended with exit code {code}; so did the run.")
        return code


def _start(
    count: int, arguments: Sequence[str], given: Mapping[str, str], errors: list[Path]
) -> list[subprocess.Popen[bytes]]:
    environment = {
        "OMP_NUM_THREADS": str(max(1, usable_cpus() // count)),
        **given,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
    }
    processes = []
    for rank in range(count):
        with errors[rank].open("wb") as stderr:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "ducat_serve", *arguments],
                    env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    stderr=None if rank == 0 else stderr,
                    start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
                    preexec_fn=_stop_with_launcher if sys.platform == "linux" else None,
                )
            )
    return processes


def _stop_with_launcher() -> None:
    """Ask the kernel to send this process SIGTERM once the one that started it is gone, were it killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(processes: list[subprocess.Popen[bytes]], stop: StopSignal) -> int | None:
    """Until all have ended; returns the first that failed."""
    passed_on, deadline, failed = False, None, None
    while any(process.poll() is None for process in processes):
        if stop.received is not None and not passed_on:
            passed_on = True
            for process in processes:
                process.send_signal(stop.received)
        if failed is None:
            failed = _first_failure(processes)
        if failed is not None:
            deadline = deadline or time.monotonic() + _GRACE_SECONDS
            if time.monotonic() > deadline:
                break
        time.sleep(_POLL_SECONDS)
    return failed if failed is not None else _first_failure(processes)


def _first_failure(processes: list[subprocess.Popen[bytes]]) -> int | None:
    ended = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
    return min(ended, key=lambda rank: _blame(processes[rank].returncode), default=None)


def _blame(code: int) -> int:
    """Which of several failures is the cause of the others: the lowest.

    A usage error or an interruption says so itself. A process that was killed makes the others exit with 1, and one
    that exits may make the others abort, since they lose their connections.
    """
    if code > 1:
        return 0
    if code < 0 and code != -signal.SIGABRT:
        return 1
    return 2 if code == 1 else 3


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
