"""Goodput of the batcher under overload, with an inference that sleeps, so that the machine hardly matters.

    python benchmarks/overload.py

Requests of one image come by the clock, at a multiple of what can be answered, whether or not answers come. Goodput is
what is answered within the deadline, as a share of what the inference could do in that time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import click
import numpy as np
from numpy.typing import NDArray

from ducat_serve.predictor import Predictions
from service.models.batcher import Batcher, DeadlineExceeded, Overloaded

MAX_BATCH = 32
IMAGE = np.zeros((1, 1, 1, 1), np.uint8)


class Sleeping:
    """Takes ``seconds`` for a batch of any size, a fifth more or less."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.random = random.Random(0)

    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        time.sleep(self.seconds * self.random.uniform(0.8, 1.2))
        zeros = np.zeros(len(images))
        return Predictions(
            np.zeros((len(images), 2), np.float32), zeros.astype(int), zeros.astype(np.float32)
        )


async def measure(
    load: float, seconds: float, batch_seconds: float, deadline: float
) -> tuple[float, Counter[str]]:
    """Offer ``load`` times the capacity for ``seconds``; returns the goodput, and how the requests ended."""
    capacity = MAX_BATCH / batch_seconds
    batcher = Batcher(
        Sleeping(batch_seconds), max_batch=MAX_BATCH, max_queue=100_000, seconds_per_batch=batch_seconds
    )
    ends: Counter[str] = Counter()
    started = time.perf_counter()
    warm = seconds / 4  # until the queue is as long as it gets
    good = 0

    async def one() -> None:
        nonlocal good
        try:
            await batcher.predict(IMAGE, deadline)
        except Overloaded:
            ends["refused at once"] += 1
        except DeadlineExceeded:
            ends["too late"] += 1
        else:
            ends["answered"] += 1
            good += warm <= time.perf_counter() - started < seconds

    tasks = set()
    for number in range(int(load * capacity * seconds)):
        due = started + number / (load * capacity)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.add(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    await batcher.close()
    return good / (capacity * (seconds - warm)), ends


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="How long each load is offered.")
@click.option("--batch-seconds", default=0.1, show_default=True, help="What a batch takes.")
@click.option("--deadline", default=1.0, show_default=True, help="Seconds within which an answer counts.")
def main(seconds: float, batch_seconds: float, deadline: float) -> None:
    """Print a row for each load."""
    print("| load | goodput | answered | refused at once | too late |\n|---|---|---|---|---|")
    for load in (0.9, 1.5, 3.0, 10.0):
        goodput, ends = asyncio.run(measure(load, seconds, batch_seconds, deadline))
        counts = (f"{ends[kind]:,}" for kind in ("answered", "refused at once", "too late"))
        print(f"| {load:g} | {goodput:.0%} | {' | '.join(counts)} |", flush=True)


if __name__ == "__main__":
    main()
