"""Cases about holding out: `soak`, `overload`, `start`."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import statistics
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ducat_serve import Predictor
from serving import servers
from serving.client import Connection, closed_loop, message
from serving.processes import running
from serving.settings import FIELD, Plan
from serving.tables import table
from serving.uploads import form, pictures, png

PICTURES = 64  # different ones in the soak
SETTLE_SECONDS = 20  # longer than BentoML keeps a timer per request, so that these are no growth
DEADLINE_SECONDS = 10  # of `ducat serve`
OVERLOADS = (1.5, 3.0, 10.0)  # times the capacity


def soak(plan: Plan, model: Path, requests: int) -> None:
    """Many requests, every label compared with the Predictor's, and what memory does meanwhile."""
    images = pictures(PICTURES, plan.size)
    labels = Predictor(model, device="cpu", threads=1)(images).label.tolist()
    forms = [form(FIELD, png(image)) for image in images]
    with running(servers.ours(model, plan.threads)) as server, ProcessPoolExecutor(1) as client:
        closed_loop(server.port, server.path, forms[0], 32, SETTLE_SECONDS)
        memory = [server.memory()[1]]
        seen: Counter[str] = Counter()
        for _ in range(4):
            quarter = client.submit(_ask_all, server.port, server.path, forms, labels, requests // 4)
            seen += quarter.result()
            memory.append(server.memory()[1])
    unexpected = {kind: count for kind, count in seen.items() if kind != "right"}
    print(f"\n{requests:,} requests, 32 in flight, {PICTURES} pictures, {len(set(labels))} labels\n")
    print(
        table(
            ("right answers", "unexpected", "PSS before, MiB", "after each quarter", "growth"),
            (
                f"{seen['right']:,}",
                str(unexpected or 0),
                f"{memory[0]:.1f}",
                ", ".join(f"{value:.1f}" for value in memory[1:]),
                f"{100 * (memory[-1] / memory[0] - 1):.1f} %",
            ),
        )
    )


def _ask_all(port: int, path: str, forms: list[bytes], labels: list[int], requests: int) -> Counter[str]:
    """Ask for every picture in turn, 32 in flight; the label tells whether an answer is that of its own request."""
    seen: Counter[str] = Counter()
    messages = [message(port, path, body) for body in forms]

    async def one(numbers: itertools.count[int]) -> None:
        connection = await Connection.open(port)
        while (number := next(numbers)) < requests:
            status, _, body = await connection.ask(messages[number % len(messages)])
            if status != 200:
                seen[f"status {status}"] += 1
            elif json.loads(body)["predictions"][0]["class_id"] != labels[number % len(labels)]:
                seen["wrong label"] += 1
            else:
                seen["right"] += 1
        connection.close()

    async def all_of_them() -> None:
        numbers = itertools.count()
        await asyncio.gather(*(one(numbers) for _ in range(32)))

    asyncio.run(all_of_them())
    return seen


class Answer(NamedTuple):
    """One answer in the open loop."""

    at: float  # seconds since the start, when it came
    latency: float  # seconds since the request was due
    status: int
    retry_after: str  # the header's value; empty where there is none


def overload(plan: Plan, model: Path, seconds: float) -> None:
    """Requests by the clock, more than can be answered, whether or not answers come; one row for each load."""
    body = form(FIELD, png(pictures(1, plan.size)[0]))
    rows = []
    with running(servers.ours(model, plan.threads)) as server, ProcessPoolExecutor(1) as client:
        request = message(server.port, server.path, body)
        closed_loop(server.port, server.path, body, 64, 2)
        capacities = [closed_loop(server.port, server.path, body, 64, seconds / 2).rate]
        for load in OVERLOADS:
            offered = load * capacities[-1]
            answers, late = client.submit(_open_loop, server.port, request, offered, seconds).result()
            capacities.append(closed_loop(server.port, server.path, body, 64, seconds / 2).rate)
            rows.append(_overload_row(load, statistics.mean(capacities[-2:]), answers, late, seconds))
    print(
        f"\n{model.stem}: capacity before, between and after: {', '.join(f'{c:,.0f}/s' for c in capacities)}\n"
    )
    print(
        table(
            ("load", "goodput", "of capacity", "answers by status", "Retry-After of refusals, seconds",
             "p99 of the accepted, deadline", "sent late, p99"),
            *rows,
        )
    )  # fmt: skip


def _overload_row(
    load: float, capacity: float, answers: list[Answer], late: float, seconds: float
) -> tuple[str, ...]:
    # From when the queue is full; what is answered after the last request is not counted.
    begin = seconds / 4
    good = [answer for answer in answers if answer.status == 200 and begin <= answer.at < seconds]
    goodput = len(good) / (seconds - begin)
    p99 = float(np.quantile([answer.latency for answer in answers if answer.status == 200], 0.99))
    waits = Counter(answer.retry_after for answer in answers if answer.status != 200)
    return (
        f"{load:g}",
        f"{goodput:,.0f}/s",
        f"{100 * goodput / capacity:.0f} %",
        str(dict(Counter(answer.status for answer in answers))),
        str(dict(waits.most_common(4))),
        f"{p99:.2f} s, {DEADLINE_SECONDS} s",
        f"{1000 * late:.1f} ms",
    )


def _open_loop(port: int, request: bytes, rate: float, seconds: float) -> tuple[list[Answer], float]:
    """Send each request when it is due, on a free connection or a new one; returns answers and p99 of the delay."""
    answers: list[Answer] = []
    delays: list[float] = []
    free: list[Connection] = []

    async def one(due: float, started: float) -> None:
        connection = await _fresh(free, port)
        status, head, _ = await connection.ask(request)
        now = time.perf_counter()
        wait = re.search(rb"\r\nretry-after: *(\d+)", head)
        answers.append(Answer(now - started, now - due, status, wait[1].decode() if wait else ""))
        free.append(connection)

    async def all_of_them() -> None:
        started = time.perf_counter()
        tasks = set()
        for number in range(int(rate * seconds)):
            due = started + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            delays.append(time.perf_counter() - due)
            tasks.add(asyncio.create_task(one(due, started)))
        await asyncio.gather(*tasks)

    asyncio.run(all_of_them())
    return answers, float(np.quantile(delays, 0.99))


async def _fresh(free: list[Connection], port: int) -> Connection:
    """A connection that the server has not closed for idling."""
    while free:
        connection = free.pop()
        if connection.is_open:
            return connection
        connection.close()
    return await Connection.open(port)


def start(plan: Plan, model: Path) -> None:
    """Seconds from the command to a ready server, and its memory when it has answered."""
    body = form(FIELD, png(pictures(1, plan.size)[0]))
    seconds: list[float] = []
    memory: list[tuple[float, float]] = []  # resident, proportional
    for _ in range(max(3, plan.rounds)):
        with running(servers.ours(model, plan.threads)) as server:
            seconds.append(server.seconds_to_ready)
            closed_loop(server.port, server.path, body, 32, 2)
            memory.append(server.memory())
    rss, pss = zip(*memory, strict=True)
    print(
        "\n"
        + table(
            ("start to ready", "resident, all processes", "proportional (shared pages once)"),
            (
                f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})",
                f"{statistics.median(rss):.0f} MiB",
                f"{statistics.median(pss):.0f} MiB",
            ),
        )
    )
