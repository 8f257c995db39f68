"""The served models, and the door through which every request for a prediction goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from ducat_serve.errors import DataError
from ducat_serve.predictor import Predictions, Predictor
from service.errors import Problem
from service.middleware.auth import charge
from service.models.batcher import Batcher, DeadlineExceeded, Infer, Overloaded
from service.models.repository import Repository
from service.models.served import Served, load
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing

log = logging.getLogger("ducat_serve.service")
log.setLevel(logging.INFO)
DECODING_THREADS = 2


class Admission:
    """A request that was let in: what will answer it, and how many images it holds in memory."""

    def __init__(self, models: Models, served: Served, request: Request) -> None:
        self._models, self.served, self._request = models, served, request
        self.images = 0

    def take(self, images: int) -> None:
        """Count so many images and charge them to the client, before they are decoded.

        Raises Problem (429) where all together are too many, or these are more than the client has left.
        """
        if self._models.images + images > self._models.settings.max_queue:
            raise _overloaded()
        charge(self._request, images)
        self._models.images += images
        self.images += images


class Models:
    """What is served, by name and version; every version is replaced as a whole, at once."""

    def __init__(self, settings: Settings, tracing: Tracing | None = None) -> None:
        self.settings, self.tracing = settings, tracing
        self.repository = Repository(settings.model)
        self.is_loaded = False  # whether all models that were there at the start are
        self.is_draining = False  # SIGTERM came: requests are still answered, but others should go elsewhere
        self.metrics = Metrics(lambda: sum(served.batcher.rows for served in self.all()))
        self.requests = 0  # being read, decoded or predicted
        self.images = 0  # of theirs that are in memory, or are about to be
        # A decoded 25-megapixel image takes hundreds of megabytes for a moment: two at a time, no more.
        self.decoding = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")
        self._served: dict[str, dict[str, Served]] = {}
        self._loading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load and warm up off the event loop, so that /livez answers meanwhile. Raises where one is refused."""
        for name in await asyncio.to_thread(self.repository.find):
            await self._load(name)
        self.is_loaded = True

    async def load(self, name: str) -> list[Served]:
        """Read every version of a model again and swap all of them in once they are verified and warm.

        No request fails for it. Versions that are no longer on disk go. Returns what is served now.
        Raises Problem: 422 where one is refused; then everything stays as it was. 404 for one that never was.
        """
        async with self._loading:
            try:
                await self._load(name)
            except LookupError as error:
                raise Problem(404, "unknown_model", f"There is no model '{name}' on disk.") from error
            except Exception as error:
                log.error("Model %s was refused, the old one stays: %s", name, error)
                message = (
                    f"Model '{name}' was refused and the old one stays; the cause is in the server's log."
                )
                raise Problem(422, "model_refused", message) from error
            return list(self._served[name].values())

    async def reload(self) -> list[Served]:
        """`load` everything that is served or on disk.

        Raises Problem (422) where models are refused; the others are swapped all the same.
        """
        try:
            on_disk = set(await asyncio.to_thread(self.repository.find))
        except Exception as error:
            log.error("The models on disk cannot be read, the old ones stay: %s", error)
            on_disk = set()
        refused = []
        for name in sorted(on_disk | set(self._served)):
            try:
                await self.load(name)
            except Problem:
                refused.append(name)
        if refused:
            message = (
                f"Refused, so the old ones stay: {', '.join(refused)}. The cause is in the server's log."
            )
            raise Problem(422, "model_refused", message)
        return self.all()

    async def unload(self, name: str) -> None:
        """Serve a model no longer; requests that came to it finish. Raises Problem (404) where it is unknown."""
        async with self._loading:
            self.versions(name)
            self._swap(name, {})
            log.info("Model %s is served no longer", name)

    def serve(self, name: str, predictors: dict[str, tuple[Predictor, Infer]]) -> None:
        """From now on requests for ``name`` go to these versions; each with what its batcher calls."""
        settings = self.settings
        versions = {}
        for version, (predictor, infer) in predictors.items():
            batcher = Batcher(
                infer,
                max_batch=settings.max_batch,
                max_queue=settings.max_queue,
                observe=self.metrics.batch,
                trace=self.tracing.batched if self.tracing else None,
            )
            versions[version] = Served(name, version, predictor, batcher)
            digest = predictor.spec.weights_digest[:12]
            log.info("Model %s, version %s (%s) is ready on %s", name, version, digest, predictor.provider)
            if predictor.fallback_reason:
                log.warning("Serving on the CPU: %s", predictor.fallback_reason)
        self._swap(name, versions)

    async def _load(self, name: str) -> None:
        files = await asyncio.to_thread(self.repository.find)
        if name not in files:
            missing = DataError if name in self._served else LookupError
            raise missing(f"'{name}' is not on disk.")
        loaded = {
            version: await asyncio.to_thread(load, file, self.settings)
            for version, file in files[name].items()
        }
        self.serve(name, {version: (predictor, predictor) for version, predictor in loaded.items()})

    def _swap(self, name: str, versions: dict[str, Served]) -> None:
        for old in self._served.pop(name, {}).values():
            retiring = asyncio.create_task(old.retire())
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
        if versions:
            self._served[name] = versions
        self.metrics.serving(self.all())

    async def stop(self) -> None:
        """Answer what is queued."""
        await asyncio.gather(*(served.batcher.close() for served in self.all()), *self._retiring)
        self.decoding.shutdown(wait=False)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.stop)

    def all(self) -> list[Served]:
        """Every version of every model, sorted."""
        return [
            self._served[name][version]
            for name in sorted(self._served)
            for version in sorted(self._served[name], key=int)
        ]

    def versions(self, name: str) -> list[str]:
        """What is served of a model, the newest last. Raises Problem (404) where that is nothing."""
        self.require_loaded()
        if name not in self._served:
            raise Problem(404, "unknown_model", f"There is no model '{name}' here.")
        return sorted(self._served[name], key=int)

    def get(self, name: str | None = None, version: str | None = None) -> Served:
        """One model: the only one unless named, its newest version unless given.

        Raises Problem: 503 before all are ready, 404 for an unknown one, 400 where there are several and none is named.
        """
        self.require_loaded()
        if name is None:
            if not self._served:
                raise Problem(404, "unknown_model", "No model is served.")
            if len(self._served) > 1:
                raise Problem(400, "model_required", f"Name a model: {', '.join(sorted(self._served))}.")
            name = next(iter(self._served))
        versions = self.versions(name)
        if version is None:
            version = versions[-1]
        if version not in versions:
            message = f"There is no version '{version}' of model '{name}' here."
            raise Problem(404, "unknown_model", message)
        return self._served[name][version]

    @property
    def is_ready(self) -> bool:
        """Whether requests should come here."""
        return self.is_loaded and bool(self._served) and not self.is_draining

    def require_ready(self) -> None:
        """Raises Problem (503) before all models are loaded, and while the server drains."""
        self.require_loaded()
        if not self._served:
            raise Problem(503, "not_ready", "No model is served.", retry_after=1)
        if self.is_draining:
            raise Problem(503, "stopping", "The server is stopping.", retry_after=1)

    def require_loaded(self) -> None:
        """Raises Problem (503) before all models are loaded."""
        if not self.is_loaded:
            raise Problem(503, "not_ready", "The model is still loading.", retry_after=1)

    @contextlib.asynccontextmanager
    async def admitted(
        self, request: Request, name: str | None, version: str | None
    ) -> AsyncIterator[Admission]:
        """Let a request in: refused at once where too many are, ended at the deadline, decoding included.

        Raises Problem as `get` does, and 429 at the limit, 504 at the deadline.
        """
        admission = Admission(self, self.get(name, version), request)
        if self.requests >= self.settings.max_queue:
            raise _overloaded()
        self.requests += 1
        admission.served.users += 1
        try:
            async with asyncio.timeout(self.settings.deadline):
                yield admission
        except Overloaded as error:
            raise _overloaded(error.retry_after) from error
        except (DeadlineExceeded, TimeoutError) as error:
            message = f"No prediction within {self.settings.deadline:g} s."
            raise Problem(504, "deadline_exceeded", message, retry_after=1) from error
        finally:
            self.requests -= 1
            self.images -= admission.images
            admission.served.leave()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of a request that succeeds, and trace it."""
        span = self.tracing.stage(name) if self.tracing else contextlib.nullcontext()
        with span, self.metrics.stage(name):
            yield

    async def predict(self, served: Served, images: NDArray[np.uint8], request: Request) -> Predictions:
        """Predict through the batcher of what the request was admitted to.

        Raises ClientDisconnect where the client leaves while there is a queue; its place is free again.
        """
        waiting = served.batcher.predict(images, self.settings.deadline)
        if served.batcher.rows > self.settings.max_batch:  # not in the next batch: long enough to look
            predictions = await _unless_gone(request, waiting)
        else:
            predictions = await waiting
        self.metrics.answered(served.name, predictions)
        return predictions


def _overloaded(retry_after: float = 1) -> Problem:
    return Problem(429, "overloaded", "The server is at its limit; try again later.", retry_after=retry_after)


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
