"""How many threads a process may use, and how they wait: what OpenMP and ONNX Runtime do not find out by themselves.

torch computes with OpenMP threads, which wait for each other at the end of every operation. By default they wait by
spinning for milliseconds, and a thread that spins keeps the one that it waits for from its core wherever there are
fewer free cores than threads: beside other work, or in a container whose CPU quota is below its cores. To sleep at once
is no better for small networks, since an operation of theirs takes less time than falling asleep and waking up. So a
thread spins for a fraction of a millisecond, and then sleeps (docs/performance/training.md has the figures). Each still
waits for its turn among other work: small networks are faster there with `--threads 1`.

OpenMP counts the cores that the process may run on, but knows nothing of quotas. It reads its settings when torch is
imported, so they must be there before. ONNX Runtime counts in the same way, and is told the number with every session.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

_COUNT = "OMP_NUM_THREADS"
# Whoever sets one of these has chosen how threads wait: the standard's, GNU's and Intel's.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# GNU's count comes before the policy, which is for other libraries. Rounds of a loop of a few nanoseconds each.
_SPIN_THEN_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """CPUs that this process may use: those it may run on, or as many as its quota pays for."""
    return within_quota(_affinity(), cpu_quota())


def quota_threads() -> int | None:
    """As many threads as a quota pays for; None where none limits this process, and a library may count its CPUs."""
    return _below(_affinity(), cpu_quota())


def within_quota(cpus: int, quota: float | None) -> int:
    """At least 1. A part of a CPU is worth no thread: all the others would wait for it."""
    return cpus if quota is None else max(1, min(cpus, math.floor(quota)))


def _below(cpus: int, quota: float | None) -> int | None:
    count = within_quota(cpus, quota)
    return count if count < cpus else None


def thread_settings(given: Mapping[str, str], cpus: int, quota: float | None) -> dict[str, str]:
    """The environment variables that are missing in ``given`` for torch to get on beside others.

    Args:
        given: the environment as the user has it; what is set there stays.
        cpus: on which this process may run. OpenMP counts them itself, and one core's two threads as one.
        quota: in CPUs; None without one.
    """
    settings = {}
    if not any(name in given for name in _WAITING):
        settings.update(_SPIN_THEN_SLEEP)
    if _COUNT not in given and (count := _below(cpus, quota)) is not None:
        settings[_COUNT] = str(count)
    return settings


def prepare_threads() -> None:
    """Set what is missing in the environment of this process. Call it before torch is imported."""
    os.environ.update(thread_settings(os.environ, _affinity(), cpu_quota()))


def choose_threads(count: int | None) -> None:
    """Use ``count`` threads, whatever the environment says; None changes nothing. Before torch is imported."""
    if count is not None:
        os.environ[_COUNT] = str(count)


def cpu_quota(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """The CPUs that the control groups of this process (v1 or v2) pay for; None where none of them limits it."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return None
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            found += [_read_v2(folder / "cpu.max") for folder in _upwards(cgroups, group)]
        elif "cpu" in controllers.split(","):
            for mount in {"cpu", controllers}:
                found += [_read_v1(folder) for folder in _upwards(cgroups / mount, group)]
    return min((quota for quota in found if quota is not None), default=None)


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """The folders of a group and of those around it: the smallest quota counts.

    In a container the group's name may be the host's, which does not exist there; then the mount itself is its group.
    """
    path = PurePosixPath(group)
    for part in (path, *path.parents):
        yield mount / str(part).lstrip("/")


def _read_v2(file: Path) -> float | None:
    try:
        limit, period = file.read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _read_v1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return None if limit <= 0 else limit / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
