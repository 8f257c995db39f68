"""Attacks to be watched: those that an evaluation kept, and a search on this server where `--attack-demo` allows it.

The answer on the image that was sent is a prediction like any other. Then one search runs at a time, in a thread of its
own at the lowest priority, and asks one image at a time while no prediction waits. Two more may wait; others get 429.
Every question is charged to the client like an image of a prediction, before it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ducat_serve.attacked_examples import encode_pixels
from ducat_serve.predictor import Predictions
from service.api.admission import AdmissionControl
from service.api.images import read_images
from service.api.query import which_model
from service.attack_demo.square import Found, search
from service.errors import APIError
from service.middleware.auth import charge
from service.models.served import LoadedVersion

MOST_QUERIES = 1000
MOST_SECONDS = 20.0
_MOST_SEARCHES = 3  # one runs, the others wait
# Questions between two looks at the client and its budget; one where few may be asked at once.
_AT_A_TIME = 10
_OTHER_NORMS_LEVELS = 8  # of 255, for models that are not meant to withstand changes of single pixels
_SIGN_OF_LIFE_SECONDS = 5.0  # between two lines of an answer that waits for its turn
_LOWEST_PRIORITY = 19
_YIELD_SECONDS = 0.005


def attack_routes(control: AdmissionControl) -> list[Route]:
    """`/v1/examples`, and `/v1/attack` where the settings allow it."""
    models = control.models
    is_on = models.settings.attack_demo

    async def examples(request: Request) -> Response:
        loaded = models.get(*which_model(request))
        return JSONResponse(_kept(loaded, is_on))

    routes = [Route("/v1/examples", examples)]
    if is_on:
        routes.append(Route("/v1/attack", AttackDemo(control).attack, methods=["POST"]))
    return routes


def levels_of(loaded: LoadedVersion) -> int:
    """How far each value of a pixel may change, of 255."""
    threat_model = loaded.predictor.spec.threat_model
    return max(1, int(255 * threat_model.eps + 1e-6)) if threat_model.norm == "linf" else _OTHER_NORMS_LEVELS


def _kept(loaded: LoadedVersion, is_on: bool) -> dict[str, Any]:
    spec, kept = loaded.predictor.spec, loaded.predictor.examples
    return {
        "examples": [
            {**one.model_dump(), "label": spec.labels[one.class_id]}
            for one in (kept.examples if kept else ())
        ],
        "threat_model": None if kept is None else {"norm": kept.norm, "eps": kept.eps},
        "attack_demo": {"most_queries": MOST_QUERIES, "levels": levels_of(loaded)} if is_on else None,
    }


class AttackDemo:
    """Runs searches, one after the other."""

    def __init__(self, control: AdmissionControl) -> None:
        self._control = control
        self._at_a_time = _AT_A_TIME if control.models.settings.burst > 2 * _AT_A_TIME else 1
        self._searches = 0
        self._turn = asyncio.Lock()
        # In a thread of its own, which the scheduler asks last; it ends with the process.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="attack", initializer=_step_back)

    async def attack(self, request: Request) -> Response:
        """The search on one image, as lines of JSON while it goes on."""
        if self._searches >= _MOST_SEARCHES:
            message = "Other searches are running; try again later."
            raise APIError(429, "attack_busy", message, retry_after=MOST_SECONDS)
        self._searches += 1
        try:
            async with self._control.admitted(request, *which_model(request)) as admission:
                images = await read_images(request, admission)
                if len(images) != 1:
                    raise APIError(400, "one_image", "Send one image to be attacked.")
                answer = await admission.predict(images)
        except BaseException:
            self._searches -= 1
            raise
        return _Search(self._lines(request, admission.loaded, images[0], answer), self._done)

    def _done(self) -> None:
        self._searches -= 1

    async def _lines(
        self, request: Request, loaded: LoadedVersion, image: NDArray[np.uint8], answer: Predictions
    ) -> AsyncIterator[str]:
        labels = loaded.predictor.spec.labels
        stopped = threading.Event()
        try:
            while not await self._has_turn():
                yield "\n"  # so that no proxy takes the silence for a server that hangs
            try:
                with loaded.in_use():
                    deadline = time.monotonic() + MOST_SECONDS
                    ask = _asking(loaded, stopped, deadline)
                    steps = search(image, answer, levels_of(loaded), ask, MOST_QUERIES, seed=0)
                    loop = asyncio.get_running_loop()
                    first = found = next(steps)
                    while (reason := self._reason_to_stop(request, found, deadline)) is None:
                        step = await loop.run_in_executor(self._thread, _advance, steps, self._at_a_time)
                        if step is not None:
                            found = step
                            yield _line(
                                queries=step.queries, label=labels[step.class_id], confidence=step.confidence
                            )
                    yield _line(
                        queries=found.queries,
                        label=labels[found.class_id],
                        confidence=found.confidence,
                        stopped=reason,
                        before={"label": labels[first.class_id], "confidence": first.confidence},
                        original=encode_pixels(image),
                        attacked=encode_pixels(found.image),
                    )
            finally:
                self._turn.release()
        finally:  # also where the client has left
            stopped.set()

    async def _has_turn(self) -> bool:
        """Wait some seconds for the searches before this one; False where they take longer."""
        try:
            await asyncio.wait_for(self._turn.acquire(), _SIGN_OF_LIFE_SECONDS)
        except TimeoutError:
            return False
        return True

    def _reason_to_stop(self, request: Request, found: Found, deadline: float) -> str | None:
        """Why the search ends here; None where it goes on, and its next questions are charged."""
        if found.fooled:
            return "fooled"
        if found.queries >= MOST_QUERIES:
            return "queries"
        if time.monotonic() >= deadline or self._control.models.is_draining:
            return "time"
        try:
            charge(request, min(self._at_a_time, MOST_QUERIES - found.queries))
        except APIError as error:
            return error.code
        return None


class _Search(StreamingResponse):
    """Gives the place of its search back, also where the client left before the first line."""

    def __init__(self, lines: AsyncIterator[str], done: Callable[[], None]) -> None:
        # nginx would keep the lines until there are many, so that nobody could look on.
        super().__init__(lines, media_type="application/x-ndjson", headers={"X-Accel-Buffering": "no"})
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()


class _TooLateToAsk(Exception):
    """The client has left, or the time of its search is over."""


def _asking(
    loaded: LoadedVersion, stopped: threading.Event, deadline: float
) -> Callable[[NDArray[np.uint8]], Predictions]:
    def ask(images: NDArray[np.uint8]) -> Predictions:
        while loaded.batcher.rows:  # predictions go first
            if stopped.wait(_YIELD_SECONDS) or time.monotonic() >= deadline:
                raise _TooLateToAsk
        return loaded.predictor(images)

    return ask


def _advance(steps: Iterator[Found], questions: int) -> Found | None:
    """The state after a few more questions; None where none was asked."""
    last = None
    with contextlib.suppress(_TooLateToAsk):
        for step in itertools.islice(steps, questions):
            last = step
    return last


def _line(**fields: Any) -> str:
    return json.dumps(fields, allow_nan=False) + "\n"


def _step_back() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
