"""The model that is served, and the door through which every request for a prediction goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from ducat_serve.predictor import Predictions, Predictor
from service.batcher import Batcher, DeadlineExceeded, Overloaded
from service.metrics import Metrics
from service.problems import Problem
from service.settings import Settings

log = logging.getLogger("ducat_serve.service")
log.setLevel(logging.INFO)
DECODING_THREADS = 2


class Model:
    """The served model; None until it is loaded and warm."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.model.stem
        self.predictor: Predictor | None = None
        self.batcher: Batcher | None = None
        self.metrics = Metrics(lambda: self.batcher.rows if self.batcher else 0)
        self.requests = 0  # being read, decoded or predicted
        # A decoded 25-megapixel image takes hundreds of megabytes for a moment: two at a time, no more.
        self.decoding = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")

    @property
    def is_ready(self) -> bool:
        """Whether predictions would be answered now."""
        return self.batcher is not None

    async def start(self) -> None:
        """Load and warm up off the event loop, so that /livez answers meanwhile."""
        settings = self.settings
        predictor = await asyncio.to_thread(Predictor, settings.model, settings.device, settings.threads)
        await asyncio.to_thread(predictor.warm_up, (1, settings.max_batch))
        if predictor.fallback_reason:
            log.warning("Serving on the CPU: %s", predictor.fallback_reason)
        log.info("Model %s is ready on %s", self.name, predictor.provider)
        self.predictor = predictor
        self.metrics.loaded(self.name, predictor)
        self.batcher = Batcher(
            predictor,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            observe=self.metrics.batch,
        )

    async def stop(self) -> None:
        """Answer what is queued."""
        if self.batcher is not None:
            await self.batcher.close()
        self.decoding.shutdown(wait=False)

    def get(self) -> Predictor:
        """The predictor. Raises Problem (503) before it is ready."""
        if self.predictor is None:
            raise Problem(503, "not_ready", "The model is still loading.", retry_after=1)
        return self.predictor

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[Predictor]:
        """Let a request in: refused at once where too many are, ended at the deadline, decoding included.

        Raises Problem: 503 before the model is ready, 429 at the limit, 504 at the deadline.
        """
        predictor = self.get()
        overloaded = Problem(429, "overloaded", "The server is at its limit; try again later.", retry_after=1)
        if self.requests >= self.settings.max_queue:
            raise overloaded
        self.requests += 1
        try:
            async with asyncio.timeout(self.settings.deadline):
                yield predictor
        except Overloaded as error:
            overloaded.retry_after = error.retry_after
            raise overloaded from error
        except (DeadlineExceeded, TimeoutError) as error:
            message = f"No prediction within {self.settings.deadline:g} s."
            raise Problem(504, "deadline_exceeded", message) from error
        finally:
            self.requests -= 1

    async def predict(self, images: NDArray[np.uint8], request: Request) -> Predictions:
        """Predict through the batcher, inside `admitted`.

        Raises ClientDisconnect where the client leaves while there is a queue; its place is free again.
        """
        assert self.batcher is not None
        waiting = self.batcher.predict(images, self.settings.deadline)
        if self.batcher.rows > self.settings.max_batch:  # not in the next batch: long enough to look
            predictions = await _unless_gone(request, waiting)
        else:
            predictions = await waiting
        self.metrics.answered(self.name, predictions)
        return predictions


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, Predictions]) -> Predictions:
    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return await answering
    finally:
        answering.cancel()
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
