"""Case `batches`: what `--max-batch` gains over HTTP, beside what a bare session gains from batches."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path

from ducat_serve import Predictor
from serving import servers
from serving.client import Load, closed_loop
from serving.processes import Running, running
from serving.settings import FIELD, Plan
from serving.speed import session_seconds
from serving.tables import table
from serving.uploads import form, pictures, png

SIZES = (1, 4, 8, 32)
IN_FLIGHT = (1, 8, 64)


def batches(plan: Plan, model: Path) -> None:
    """One server for each size, all of them running; they take turns, each time beginning with another one.

    What is printed are medians of the ratios to ``--max-batch 32`` in the same round, and the ratios themselves.
    """
    predictor = Predictor(model, device="cpu", threads=plan.threads)
    body = form(FIELD, png(pictures(1, plan.size)[0]))
    loads: dict[tuple[int, int], list[Load]] = {(size, n): [] for size in SIZES for n in IN_FLIGHT}
    sessions: dict[int, list[float]] = {size: [] for size in SIZES}
    with contextlib.ExitStack() as stack:
        ours: dict[int, Running] = {
            size: stack.enter_context(running(servers.ours(model, plan.threads, "--max-batch", str(size))))
            for size in SIZES
        }
        for server in ours.values():
            closed_loop(server.port, server.path, body, 8, 1)
        for number in range(plan.rounds):
            first = number % len(SIZES)
            for size in (*SIZES[first:], *SIZES[:first]):
                sessions[size].append(size / session_seconds(predictor, size, plan.seconds / 4))
                for in_flight in IN_FLIGHT:
                    server = ours[size]
                    loads[size, in_flight].append(
                        closed_loop(server.port, server.path, body, in_flight, plan.seconds)
                    )
    print(f"\n{model.stem}, {plan.threads} inference thread(s), rounds: {plan.rounds}\n")
    print("Images/s of a bare session, and the ratio to its batches of 32:\n")
    print(
        table(
            ("batch", "images/s", "ratio"),
            *(
                (str(size), f"{statistics.median(found):,.0f}", _ratios(found, sessions[SIZES[-1]]))
                for size, found in sessions.items()
            ),
        )
    )
    print("\nRequests/s of `ducat serve`, and the ratio to `--max-batch 32`:\n")
    print(
        table(
            ("in flight", "--max-batch", "requests/s", "ratio", "p50 ms", "p99 ms"),
            *(
                (
                    str(in_flight),
                    str(size),
                    f"{statistics.median(load.rate for load in found):,.0f}",
                    _ratios(_rates(found), _rates(loads[SIZES[-1], in_flight])),
                    f"{statistics.median(load.p50 for load in found):.1f}",
                    f"{statistics.median(load.p99 for load in found):.1f}",
                )
                for in_flight in IN_FLIGHT
                for size in SIZES
                for found in [loads[size, in_flight]]
            ),
        )
    )


def _rates(loads: list[Load]) -> list[float]:
    return [load.rate for load in loads]


def _ratios(of: list[float], to: list[float]) -> str:
    ratios = [one / other for one, other in zip(of, to, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
