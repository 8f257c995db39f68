"""How fast exported models answer here: latency and images per second, and what `ducat serve` should be given.

A busy machine slows whatever runs at that moment. So the configurations take turns, each batch once in a round, and
what is reported are medians and percentiles over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ducat_serve.errors import DucatError
from ducat_serve.predictor import Device, Predictor
from ducat_serve.report import ExportPrecision
from ducat_serve.threads import usable_cpus

BATCHES = (1, 2, 4, 8, 16, 32)
FEWEST_ROUNDS = 5
DEADLINE = 10.0  # seconds: what `ducat serve` gives a request by default
_AS_GOOD = 0.95  # of the best images per second: what more threads or larger batches gain beyond it is not worth them
# Seconds that a batch costs `ducat serve` beside its inference: it is put together, and handed from one busy thread to
# another. Measured under load, as the difference that batches of one make (docs/how-to/speed.md).
_HANDING_OVER = 2e-3
_BATCHES_TO_AN_ANSWER = 3  # the one that runs, the request's own, and one to spare


@dataclass(frozen=True)
class Configuration:
    """One way to run a model. ``threads`` are the CPU threads of one inference, ``batch`` its images."""

    model: str
    precision: ExportPrecision
    provider: str
    threads: int
    batch: int


@dataclass(frozen=True)
class Timing:
    """How long each inference took, in seconds, at least one."""

    configuration: Configuration
    seconds: tuple[float, ...]

    def latency(self, percentile: float) -> float:
        """The seconds within which so many percent of the inferences ended."""
        return float(np.percentile(self.seconds, percentile))

    @property
    def images_per_second(self) -> float:
        """Of inferences of the median length, one after the other."""
        return self.configuration.batch / max(self.latency(50), 1e-9)

    @property
    def served_per_second(self) -> float:
        """What is left of ``images_per_second`` in a server that is never idle: an estimate, only to compare by."""
        return self.configuration.batch / (self.latency(50) + _HANDING_OVER)

    def to_json(self) -> dict[str, Any]:
        """The configuration, latencies in milliseconds, images per second and the number of inferences."""
        given = self.configuration
        return {
            "model": given.model,
            "precision": given.precision,
            "provider": given.provider,
            "threads": given.threads,
            "batch": given.batch,
            **{f"p{p}_ms": round(1000 * self.latency(p), 3) for p in (50, 95, 99)},
            "images_per_second": round(self.images_per_second, 1),
            "inferences": len(self.seconds),
        }


@dataclass(frozen=True)
class Proposal:
    """What to give `ducat serve` for one model, and the timing that speaks for it."""

    threads: int
    max_batch: int
    timing: Timing


def thread_counts() -> tuple[int, ...]:
    """1, 2, 4 and so on, and all CPUs that this process may use."""
    cpus = usable_cpus()
    return tuple(sorted({*(2**n for n in range(cpus.bit_length()) if 2**n <= cpus), cpus}))


def providers(device: Device) -> tuple[Device, ...]:
    """Where a model is measured: for "auto" on the CPU, and on the GPU where it works."""
    return ("cpu", "cuda") if device == "auto" else (device,)


def inferences(
    paths: Sequence[Path],
    device: Device,
    threads: Sequence[int],
    batches: Sequence[int],
    *,
    public_key: Path | None = None,
) -> dict[Configuration, Callable[[], object]]:
    """A function for each configuration that runs one inference, of random images that are always the same.

    Threads make no difference to a model on the GPU, which is measured with the first number only. With a
    ``public_key`` only what its owner signed is loaded.

    Raises what `Predictor` does for a file that does not load, before anything is measured.
    """
    runs: dict[Configuration, Callable[[], object]] = {}
    for path, name in zip(paths, names_of(paths), strict=True):
        for provider in providers(device):
            for count in threads if provider == "cpu" else threads[:1]:
                try:
                    predictor = Predictor(path, provider, count, public_key=public_key)
                except DucatError:
                    if provider == "cuda" and device == "auto":
                        continue
                    raise
                for batch in batches:
                    given = Configuration(name, predictor.spec.precision, predictor.provider, count, batch)
                    runs[given] = _inference(predictor, batch)
    return runs


def names_of(paths: Sequence[Path]) -> list[str]:
    """What configurations call the models: file names; with their folders where two are the same."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _inference(predictor: Predictor, batch: int) -> Callable[[], object]:
    shape = (batch, *predictor.spec.image_size, predictor.spec.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return lambda: predictor(images)


def measure(
    runs: Mapping[Configuration, Callable[[], object]],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    advance: Callable[[float], None] = lambda _: None,
) -> list[Timing]:
    """Run all configurations in turn until ``seconds`` have passed, and `FEWEST_ROUNDS` times at least.

    Each round begins with another configuration, so that none always follows the same one. The first inference of each
    is not counted: it pays for what is set up lazily.

    Args:
        clock: the time in seconds. advance: told how many of the seconds have passed since it was told last.
    """
    for run in runs.values():
        run()
    order = list(runs)
    taken: dict[Configuration, list[float]] = {given: [] for given in order}
    begun = last = clock()
    rounds = 0
    while rounds < FEWEST_ROUNDS or clock() - begun < seconds:
        first = rounds % len(order)
        for given in (*order[first:], *order[:first]):
            started = clock()
            runs[given]()
            taken[given].append(clock() - started)
        rounds += 1
        now = clock()
        advance(now - last)
        last = now
    return [Timing(given, tuple(times)) for given, times in taken.items()]


def propose(timings: Iterable[Timing], deadline: float = DEADLINE) -> Proposal:
    """The fewest threads, and then the smallest batches, that reach 95 % of the most images per second in a server.

    There a batch costs more than its inference (`Timing.served_per_second`), so one image at a time is rarely best.
    Smaller batches answer sooner, and threads that gain little are of more use elsewhere.

    Args:
        timings: of one model on one provider, at least one.
        deadline: seconds that a request of the server may take. A batch that does not fit it three times is left out,
            since the server would refuse what comes while one runs; where none fits, the smallest stays.
    """
    known = list(timings)
    smallest = min(timing.configuration.batch for timing in known)
    allowed = [
        timing
        for timing in known
        if timing.configuration.batch == smallest or _BATCHES_TO_AN_ANSWER * timing.latency(95) <= deadline
    ]
    best = max(timing.served_per_second for timing in allowed)
    good = [timing for timing in allowed if timing.served_per_second >= _AS_GOOD * best]
    chosen = min(good, key=lambda timing: (timing.configuration.threads, timing.configuration.batch))
    return Proposal(chosen.configuration.threads, chosen.configuration.batch, chosen)


def proposals(timings: Sequence[Timing], deadline: float = DEADLINE) -> list[Proposal]:
    """One for each model and provider, in the order in which they were measured; `propose` says by which rule."""
    groups: dict[tuple[str, str], list[Timing]] = {}
    for timing in timings:
        groups.setdefault((timing.configuration.model, timing.configuration.provider), []).append(timing)
    return [propose(group, deadline) for group in groups.values()]
