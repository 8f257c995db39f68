"""How much longer an epoch takes beside other work, and whether waiting asleep costs anything where there is none.

    python benchmarks/busy_machine.py

One epoch of digits by `ducat train`, alone and beside two processes that compute without end, as it is by default and
with OpenMP's own way of waiting. N threads that share N cores with B processes that are always busy can hope for
N / (N + B) of the machine, so an epoch should take (N + B) / N times as
long: its fair share. The bars: at most 1.5 times that, and no loss when the machine is idle. Ways are measured in turn,
because rates drift; other work on the machine makes the rows alone useless, so its load is printed.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ducat_serve.threads import usable_cpus

BUSY = 2
_THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# libgomp spins by default; the policy must not be set at all for that, so a variable that says the same stands in.
WAYS = {
    "default of ducat": {},
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """``count`` processes that keep a core busy each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds_of_epoch(environment: dict[str, str], timeout: float) -> float:
    """Of the steps alone, without imports and validation; infinite where it did not end in time."""
    given = {name: value for name, value in os.environ.items() if name not in _THREADS}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = ["train", "--dataset", "digits", "--ducat", "off", "--epochs", "1", "--out", str(run)]
        try:
            subprocess.run(
                [sys.executable, "-P", "-m", "ducat_serve", *command],
                env={**given, **environment},
                check=True,
                capture_output=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            return float("inf")
        with (run / "metrics.csv").open() as file:
            return float(next(csv.DictReader(file))["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="Seconds after which an epoch is given up."
    )
    arguments = parser.parse_args()
    cpus = usable_cpus()
    print(f"{cpus} CPUs; load before: {os.getloadavg()[0]:.1f}")
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(arguments.rounds):
        for others in (0, BUSY):
            for name, environment in WAYS.items():
                with busy(others):
                    taken = seconds_of_epoch(environment, arguments.timeout)
                found.setdefault((name, others), []).append(taken)
                print(f"  {name}, beside {others}: {taken:.1f} s", flush=True)
    medians = {case: statistics.median(values) for case, values in found.items()}
    best_alone = min(medians[name, 0] for name in WAYS)
    fair = (cpus + BUSY) / cpus
    for name in WAYS:
        alone, beside = medians[name, 0], medians[name, BUSY]
        print(
            f"{name}: alone {alone:.1f} s ({alone / best_alone:.2f} of the best), beside {BUSY} busy processes "
            f"{beside:.1f} s, {beside / alone:.2f} times as long, {beside / alone / fair:.2f} of its fair share"
        )


if __name__ == "__main__":
    main()
