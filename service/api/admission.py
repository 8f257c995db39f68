"""Admission control: which requests for predictions are let in, how long they may take, what they hold in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from ducat_serve.predictor import Predictions
from service.errors import APIError
from service.middleware.auth import charge
from service.models.batcher import DeadlineExceeded, Overloaded
from service.models.registry import Models
from service.models.served import LoadedVersion

DECODING_THREADS = 2


class AdmissionControl:
    """Lets requests in, and counts what all of them together hold."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.requests = 0  # being read, decoded or predicted
        self.images = 0  # of theirs that are in memory, or are about to be
        # A decoded 25-megapixel image takes hundreds of megabytes for a moment: two at a time, no more.
        self.decoding = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")

    @contextlib.asynccontextmanager
    async def admitted(
        self, request: Request, name: str | None, version: str | None
    ) -> AsyncIterator[Admission]:
        """Let a request in: refused at once where too many are, ended at the deadline, decoding included.

        Raises ModelError as `Models.get` does, and APIError: 429 at the limit, 504 at the deadline.
        """
        settings = self.models.settings
        admission = Admission(self, self.models.get(name, version), request)
        if self.requests >= settings.max_queue:
            raise _overloaded()
        self.requests += 1
        try:
            with admission.loaded.in_use():
                async with asyncio.timeout(settings.deadline):
                    yield admission
        except Overloaded as error:
            raise _overloaded(error.retry_after) from error
        except (DeadlineExceeded, TimeoutError) as error:
            message = f"No prediction within {settings.deadline:g} s."
            raise APIError(504, "deadline_exceeded", message, retry_after=1) from error
        finally:
            self.requests -= 1
            self.images -= admission.images

    def close(self) -> None:
        """No image is decoded from now on."""
        self.decoding.shutdown(wait=False)


class Admission:
    """A request that was let in: what will answer it, and how many images it holds in memory."""

    def __init__(self, control: AdmissionControl, loaded: LoadedVersion, request: Request) -> None:
        self._control, self.loaded, self._request = control, loaded, request
        self.images = 0

    def take(self, images: int) -> None:
        """Count so many images and charge them to the client, before they are decoded.

        Raises APIError (429) where all together are too many, or these are more than the client has left.
        """
        control = self._control
        if control.images + images > control.models.settings.max_queue:
            raise _overloaded()
        charge(self._request, images)
        control.images += images
        self.images += images

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of a request that succeeds, and trace it."""
        models = self._control.models
        span = models.tracing.stage(name) if models.tracing else contextlib.nullcontext()
        with span, models.metrics.stage(name):
            yield

    async def predict(self, images: NDArray[np.uint8]) -> Predictions:
        """Predict images [N, H, W, channels] through the batcher of the version that the request was admitted to.

        Raises ClientDisconnect where the client leaves while there is a queue; its place is free again.
        """
        models, batcher = self._control.models, self.loaded.batcher
        waiting = batcher.predict(images, models.settings.deadline)
        # Only a request that is not in the next batch waits for long enough to be worth watching its connection.
        if batcher.rows > models.settings.max_batch:
            predictions = await _unless_gone(self._request, waiting)
        else:
            predictions = await waiting
        models.metrics.predicted(self.loaded.name, predictions)
        return predictions


def _overloaded(retry_after: float = 1) -> APIError:
    return APIError(
        429, "overloaded", "The server is at its limit; try again later.", retry_after=retry_after
    )


async def _unless_gone(request: Request, prediction: Coroutine[Any, Any, Predictions]) -> Predictions:
    predicting, leaving = asyncio.ensure_future(prediction), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({predicting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not predicting.done():
            raise ClientDisconnect
        return await predicting
    finally:
        predicting.cancel()
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
