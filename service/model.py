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

from ducat_serve.errors import VerificationError
from ducat_serve.predictor import Predictions, Predictor
from service.answers import model_summary
from service.batcher import Batcher, DeadlineExceeded, Infer, Overloaded
from service.metrics import Metrics
from service.problems import Problem
from service.settings import Settings

log = logging.getLogger("ducat_serve.service")
log.setLevel(logging.INFO)
DECODING_THREADS = 2


class Served:
    """One model file, ready: its predictor, its batcher, and how many requests are using them."""

    def __init__(self, name: str, predictor: Predictor, batcher: Batcher) -> None:
        self.predictor, self.batcher = predictor, batcher
        self.summary = model_summary(name, predictor)
        self.users = 0
        self._unused = asyncio.Event()

    def leave(self) -> None:
        """A request is done with it."""
        self.users -= 1
        if self.users == 0:
            self._unused.set()

    async def retire(self) -> None:
        """Let the requests that came to it finish, then free it."""
        while self.users:
            self._unused.clear()
            await self._unused.wait()
        await self.batcher.close()


class Model:
    """The served model; `served` is None until it is loaded and warm, and replaced as a whole by `reload`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.model.stem
        self.served: Served | None = None
        self.metrics = Metrics(lambda: self.served.batcher.rows if self.served else 0)
        self.requests = 0  # being read, decoded or predicted
        # A decoded 25-megapixel image takes hundreds of megabytes for a moment: two at a time, no more.
        self.decoding = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether predictions would be answered now."""
        return self.served is not None

    async def start(self) -> None:
        """Load and warm up off the event loop, so that /livez answers meanwhile."""
        predictor = await asyncio.to_thread(self._load)
        if predictor.fallback_reason:
            log.warning("Serving on the CPU: %s", predictor.fallback_reason)
        self.serve(predictor, predictor)

    async def reload(self) -> Served:
        """Read the model file again and swap it in once it is verified and warm; no request fails for it.

        Raises Problem (422) where the file is refused; the model before it stays.
        """
        async with self._reloading:
            before = self.get()
            try:
                predictor = await asyncio.to_thread(self._load)
            except Exception as error:
                log.error("The new model was refused, the old one stays: %s", error)
                message = "The new model was refused and the old one stays; the cause is in the server's log."
                raise Problem(422, "model_refused", message) from error
            served = self.serve(predictor, predictor)
            retiring = asyncio.create_task(before.retire())
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
            return served

    def serve(self, predictor: Predictor, infer: Infer) -> Served:
        """From now on requests go to this predictor; ``infer`` is what its batcher calls."""
        settings = self.settings
        batcher = Batcher(
            infer, max_batch=settings.max_batch, max_queue=settings.max_queue, observe=self.metrics.batch
        )
        self.served = Served(self.name, predictor, batcher)
        self.metrics.loaded(self.name, predictor)
        digest = predictor.spec.weights_digest[:12]
        log.info("Model %s (%s) is ready on %s", self.name, digest, predictor.provider)
        return self.served

    def _load(self) -> Predictor:
        settings = self.settings
        predictor = Predictor(settings.model, settings.device, settings.threads)
        predictor.warm_up((1, settings.max_batch))
        _try_out(predictor)
        return predictor

    async def stop(self) -> None:
        """Answer what is queued."""
        if self.served is not None:
            await self.served.batcher.close()
        await asyncio.gather(*self._retiring)
        self.decoding.shutdown(wait=False)

    def get(self) -> Served:
        """What is served. Raises Problem (503) before it is ready."""
        if self.served is None:
            raise Problem(503, "not_ready", "The model is still loading.", retry_after=1)
        return self.served

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[Served]:
        """Let a request in: refused at once where too many are, ended at the deadline, decoding included.

        Raises Problem: 503 before the model is ready, 429 at the limit, 504 at the deadline.
        """
        served = self.get()
        overloaded = Problem(429, "overloaded", "The server is at its limit; try again later.", retry_after=1)
        if self.requests >= self.settings.max_queue:
            raise overloaded
        self.requests += 1
        served.users += 1
        try:
            async with asyncio.timeout(self.settings.deadline):
                yield served
        except Overloaded as error:
            overloaded.retry_after = error.retry_after
            raise overloaded from error
        except (DeadlineExceeded, TimeoutError) as error:
            message = f"No prediction within {self.settings.deadline:g} s."
            raise Problem(504, "deadline_exceeded", message, retry_after=1) from error
        finally:
            self.requests -= 1
            served.leave()

    async def predict(self, served: Served, images: NDArray[np.uint8], request: Request) -> Predictions:
        """Predict through the batcher of what the request was admitted to.

        Raises ClientDisconnect where the client leaves while there is a queue; its place is free again.
        """
        waiting = served.batcher.predict(images, self.settings.deadline)
        if served.batcher.rows > self.settings.max_batch:  # not in the next batch: long enough to look
            predictions = await _unless_gone(request, waiting)
        else:
            predictions = await waiting
        self.metrics.answered(self.name, predictions)
        return predictions


def _try_out(predictor: Predictor) -> None:
    """A model whose answers are not numbers, or contradict each other, is never served."""
    shape = (2, *predictor.spec.image_size, predictor.spec.channels)
    answer = predictor(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    is_sound = np.isfinite(answer.logits).all() and np.isfinite(answer.dummy_mass).all()
    if not is_sound or not (answer.label == answer.logits.argmax(axis=1)).all():
        raise VerificationError("The model's answers to a test image are not sound.")


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
