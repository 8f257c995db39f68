"""Cases about speed: `rate` (beside a bare session), `rivals`, `layers`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from ducat_serve import Predictor
from ducat_serve.images import decode, to_array
from serving import servers
from serving.client import Load, closed_loop
from serving.processes import Server, running
from serving.settings import FIELD, Plan
from serving.tables import table
from serving.uploads import form, pictures, png

LAYERS = (
    ("BentoML with none of its layers", ""),
    ("+ request context (has no switch)", "context"),
    ("+ timeout (has no switch)", "timeout"),
    ("+ tracing with every URL excluded (has no switch)", "tracing_off"),
    ("context and tracing_off", "context,tracing_off"),
    ("+ tracing", "tracing"),
    ("+ metrics", "metrics"),
    ("+ access log", "access_log"),
    ("+ concurrency limit", "concurrency"),
    ("BentoML's default: all but the limit", "context,timeout,tracing,metrics,access_log"),
)


def session_seconds(predictor: Predictor, rows: int, seconds: float) -> float:
    """Median seconds of one call of the bare session with ``rows`` images."""
    images = pictures(rows, predictor.spec.image_size)
    return _median_seconds(lambda: predictor(images), seconds)


def decode_seconds(predictor: Predictor, seconds: float) -> float:
    """Median seconds to decode one upload."""
    file = png(pictures(1, predictor.spec.image_size)[0])
    return _median_seconds(lambda: to_array(decode(file), predictor.spec.channels), seconds)


def _median_seconds(function: Callable[[], object], seconds: float) -> float:
    function()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class Measured:
    """One server over several rounds."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.crowds: list[Load] = []
        self.alone: list[Load] = []
        self.cpu: list[float] = []  # seconds per request at `in_flight`

    def round(self, plan: Plan, in_flight: int, alone: bool) -> None:
        """Start it, warm it up, measure it, end it."""
        body = form(FIELD, png(pictures(1, plan.size)[0]))
        with running(self.server) as server:
            closed_loop(server.port, server.path, body, in_flight, 2)
            before = server.cpu_seconds()
            load = closed_loop(server.port, server.path, body, in_flight, plan.seconds)
            self.crowds.append(load)
            self.cpu.append((server.cpu_seconds() - before) / load.requests)
            if alone:
                self.alone.append(closed_loop(server.port, server.path, body, 1, plan.seconds))

    @property
    def rate(self) -> float:
        return statistics.median(load.rate for load in self.crowds)

    @property
    def cpu_ms(self) -> float:
        return 1000 * statistics.median(self.cpu)

    def alone_ms(self, quantile: str) -> float:
        return statistics.median(float(getattr(load, quantile)) for load in self.alone)


def rate(plan: Plan, model: Path) -> None:
    """Images per second over HTTP beside those of a bare session fed full batches."""
    predictor = Predictor(model, device="cpu", threads=plan.threads)
    ours, sessions = Measured(servers.ours(model, plan.threads)), []
    for _ in range(plan.rounds):
        sessions.append(32 / session_seconds(predictor, 32, plan.seconds))
        ours.round(plan, in_flight=64, alone=False)
    session = statistics.median(sessions)
    print(f"\n{predictor.spec.network}, {plan.threads} inference thread(s), 64 requests in flight\n")
    print(
        table(
            ("", "images/s", "ratio"),
            ("bare session, batches of 32", f"{session:,.0f}", "1"),
            ("ducat serve", f"{ours.rate:,.0f}", f"{ours.rate / session:.2f}"),
        )
    )


def rivals(plan: Plan, model: Path, env: Path) -> None:
    """Ours beside FastAPI, LitServe and our own application without BentoML."""
    servers.install_rivals(env)
    predictor = Predictor(model, device="cpu", threads=plan.threads)
    all_of_them = [
        Measured(server)
        for server in (
            servers.ours(model, plan.threads),
            servers.without_bentoml(model, plan.threads),
            servers.fastapi(model, plan.threads, env),
            servers.litserve(model, plan.threads, env),
        )
    ]
    full, floor = [], []
    for _ in range(plan.rounds):
        full.append(32 / session_seconds(predictor, 32, 1))
        floor.append(session_seconds(predictor, 1, 1) + decode_seconds(predictor, 1))
        for measured in all_of_them:
            measured.round(plan, in_flight=32, alone=True)
    least = 1000 * statistics.median(floor)
    session = statistics.median(full)
    reference = all_of_them[0].rate
    print(f"\n{predictor.spec.network}, {plan.threads} inference thread(s), rounds: {plan.rounds}\n")
    rows = [
        (
            measured.server.name,
            f"{measured.rate:,.0f}",
            f"{reference / measured.rate:.2f}",
            f"{measured.cpu_ms:.2f}",
            f"{measured.alone_ms('p50'):.2f}",
            f"{measured.alone_ms('p50') - least:.2f}",
            f"{measured.alone_ms('p99'):.2f}",
        )
        for measured in all_of_them
    ]
    print(
        table(
            ("", "requests/s, 32 in flight", "ours / this", "CPU ms per request", "alone: p50 ms",
             "beyond decode + session", "p99 ms"),
            *rows,
            ("bare session, batches of 32", f"{session:,.0f}", f"{reference / session:.2f}", "", "", "", ""),
            ("decode + bare session, one image", "", "", "", f"{least:.2f}", "0", ""),
        )
    )  # fmt: skip
    print("\nRequests/s round by round:")
    for measured in all_of_them:
        print(f"  {measured.server.name}: {', '.join(f'{load.rate:,.0f}' for load in measured.crowds)}")
    print(
        f"Requests alone, of each server: {min(sum(x.requests for x in m.alone) for m in all_of_them):,} or more"
    )


def layers(plan: Plan, model: Path) -> None:
    """What each of BentoML's layers costs, switched on alone."""
    rows = [Measured(servers.without_bentoml(model, plan.threads))]
    rows += [Measured(servers.with_layers(model, plan.threads, *layer)) for layer in LAYERS]
    for _ in range(plan.rounds):
        for measured in rows:
            measured.round(plan, in_flight=32, alone=False)
    bare = rows[1]
    print(
        "\n"
        + table(
            ("", "requests/s", "ratio", "CPU ms per request"),
            *(
                (m.server.name, f"{m.rate:,.0f}", f"{m.rate / bare.rate:.2f}", f"{m.cpu_ms:.3f}")
                for m in rows
            ),
        )
    )
