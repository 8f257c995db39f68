"""How much longer an epoch takes beside other work, and whether waiting asleep costs anything where there is none.

    python benchmarks/busy_machine.py
    python benchmarks/busy_machine.py --rounds 1 --way default --way one-thread

One epoch of digits by `ducat train`, from its first step to the end, alone and beside two processes that compute
without end: as it is by default, with OpenMP's own way of waiting, asleep at once, and with one thread. The bar: at
most 1.5 times its fair share. What is fair is taken from the busy processes themselves, since other work on the machine
changes what is left. While the epoch ran, each of them had some share of a core, and every thread of a training may
hope for as much.
So an epoch that takes C seconds of CPU alone, in the best of the ways, should take C / (N * share) seconds with N
threads; time that they wait for each other counts against ducat. Where the load was not 0 before, "alone" says nothing
of an idle machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ducat_serve.threads import usable_cpus

BUSY = 2
_THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# libgomp spins by default; the policy must not be set at all for that, so a variable that says the same stands in.
WAYS = {
    "default": {},
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one-thread": {"OMP_NUM_THREADS": "1"},
}
_POLL = 0.05  # seconds


@dataclass(frozen=True)
class Epoch:
    """What one took, or had taken when it was given up."""

    seconds: float  # of wall-clock
    cpu: float  # seconds, of all its threads
    share: float | None  # of a core that a busy process had meanwhile; None without any
    ended: bool


@contextmanager
def busy(count: int) -> Iterator[list[int]]:
    """``count`` processes that keep a core busy each; their ids."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield [other.pid for other in others]
    finally:
        for other in others:
            other.kill()
            other.wait()


def cpu_seconds(pid: int) -> float:
    """Of a process that was not waited for yet, ended or not (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def epoch(environment: dict[str, str], others: list[int], timeout: float) -> Epoch:
    """One epoch of digits, counted from the moment when the run folder is there: imports are over by then."""
    given = {name: value for name, value in os.environ.items() if name not in _THREADS}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = ["train", "--dataset", "digits", "--ducat", "off", "--epochs", "1", "--out", str(run)]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ducat_serve", *command],
            env={**given, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not (run / "config.json").exists() and not has_ended(process.pid):
                time.sleep(_POLL)
            started, before = time.monotonic(), [cpu_seconds(pid) for pid in (process.pid, *others)]
            while not (over := has_ended(process.pid)) and time.monotonic() - started < timeout:
                time.sleep(_POLL)
            seconds = time.monotonic() - started
            after = [cpu_seconds(pid) for pid in (process.pid, *others)]
        finally:
            process.kill()
            process.wait()
    if over and process.returncode != 0:
        raise SystemExit(f"ducat {' '.join(command)} failed: run it to see why")
    own, *theirs = (later - earlier for later, earlier in zip(after, before, strict=True))
    share = statistics.mean(theirs) / seconds if theirs else None
    return Epoch(seconds, own, share, over)


def has_ended(pid: int) -> bool:
    """Whether a child has ended. It is not waited for, so that its CPU time can still be read."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def times_fair_share(beside: Epoch, cpu_alone: float, threads: int) -> float:
    """How many times as long as is fair an epoch took beside busy processes, at least."""
    assert beside.share is not None
    return beside.seconds * threads * beside.share / cpu_alone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", action="append", choices=WAYS, help="all of them unless given")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="Seconds after which an epoch is given up."
    )
    arguments = parser.parse_args()
    cpus, ways = usable_cpus(), arguments.way or list(WAYS)
    print(f"{cpus} CPUs; load before: {os.getloadavg()[0]:.1f}", flush=True)
    found: dict[tuple[str, int], list[Epoch]] = {}
    for _ in range(arguments.rounds):
        for count in (0, BUSY):
            for way in ways:  # in turn, because rates drift
                with busy(count) as others:
                    one = epoch(WAYS[way], others, arguments.timeout)
                found.setdefault((way, count), []).append(one)
                share = "" if one.share is None else f", a busy process had {one.share:.2f} of a core"
                end = "" if one.ended else ", given up"
                print(
                    f"  {way}, beside {count}: {one.seconds:.1f} s, {one.cpu:.1f} s of CPU{share}{end}",
                    flush=True,
                )
    alone = {way: statistics.median(one.seconds for one in found[way, 0]) for way in ways}
    # The work itself: what comes on top is what threads waste on each other.
    ended = [one.cpu for way in ways for one in found[way, 0] if one.ended]
    if not ended:
        raise SystemExit("no epoch ended in time, not even alone: give a longer --timeout")
    for way in ways:
        threads = 1 if way == "one-thread" else cpus
        fair = statistics.median(times_fair_share(one, min(ended), threads) for one in found[way, BUSY])
        more = "" if all(one.ended for one in found[way, BUSY]) else " or more"
        print(
            f"{way}: alone {alone[way]:.1f} s ({alone[way] / min(alone.values()):.2f} of the best), "
            f"beside {BUSY} busy processes {fair:.2f} times its fair share{more}"
        )


if __name__ == "__main__":
    main()
