"""Admission control: which requests for predictions are let in, how long they may take, what they hold in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from ducat_serve.images import ImageError
from ducat_serve.predictor import Predictions
from service.decoding.decoders import Decoders, DecoderUnavailable, Turns
from service.errors import APIError
from service.middleware.auth import charge_request, refund
from service.models.batcher import DeadlineExceeded, Overloaded
from service.models.registry import Models, log
from service.models.served import LoadedVersion
from service.telemetry.audit import AuditLog, Images, Origin

T = TypeVar("T")
DOCUMENT_THREADS = 2
# Of the time that a request has left, so much may be expected to go into decoding. The expectation may be too low, and
# the model needs some time too.
_DECODING_SHARE = 0.8
# A request that was still being decoded at its deadline was too large where its own images had more of the time than
# this; else others, or the server, kept it waiting.
_OWN_SHARE = 0.5
_TOO_MUCH = ("image_too_large", "image_too_slow")  # of an image: more than the server takes


class AdmissionControl:
    """Lets requests in, and counts what all of them together hold."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.requests = 0  # being read, decoded or predicted
        self.images = 0  # of theirs that are in memory, or are about to be
        self.decoders = Decoders(models.settings.decoders)
        self.audit = self._open_audit_log()
        models.metrics.watch(
            "ducat_requests_in_flight",
            "Requests for predictions that are being read, decoded or predicted.",
            lambda: self.requests,
        )
        models.metrics.watch(
            "ducat_decode_waiting",
            "Images waiting for a decoder or being decoded.",
            lambda: self.decoders.waiting,
        )
        # A large document would hold up everybody while the event loop parsed or wrote it.
        self.documents = ThreadPoolExecutor(DOCUMENT_THREADS, thread_name_prefix="documents")

    @property
    def is_ready(self) -> bool:
        """Whether requests should come here."""
        return self.models.is_ready and not self.decoders.do_not_start and self._records

    def require_ready(self) -> None:
        """Raises ModelError as `Models.require_ready` does, and APIError (503) while no prediction could be made."""
        self.models.require_ready()
        self._require_records()
        if self.decoders.do_not_start:
            message = "No image decoder can be started; the log says why."
            raise APIError(503, "not_ready", message, retry_after=1)

    @property
    def _records(self) -> bool:
        """Whether predictions that are to be recorded could be."""
        return self.audit is None or not self.audit.is_full

    def _require_records(self) -> None:
        if not self._records:
            message = "Predictions cannot be recorded at the moment, so none are made."
            raise APIError(503, "audit_unavailable", message, retry_after=1)

    def _open_audit_log(self) -> AuditLog | None:
        path = self.models.settings.audit_log
        if path is None:
            return None
        audit = AuditLog(path)
        self.models.metrics.watch(
            "ducat_audit_waiting", "Predictions that are not in the audit log yet.", lambda: audit.waiting
        )
        return audit

    @contextlib.asynccontextmanager
    async def admitted(
        self, request: Request, name: str | None, version: str | None
    ) -> AsyncIterator[Admission]:
        """Let a request in: refused at once where too many are, ended at the deadline, decoding included.

        Raises ModelError as `Models.get` and `LoadedVersion.require_running` do, and APIError: 429 at the limit, 504 at
        the deadline, 408 where the body has not come by then, 413 where its own images took the time, 503 where no more
        predictions can be recorded.
        """
        self._require_records()
        settings = self.models.settings
        admission = Admission(self, self.models.get(name, version), request)
        admission.loaded.require_running()
        batcher = admission.loaded.batcher
        self.requests += 1
        try:
            if self.requests > settings.max_queue:
                raise Overloaded(batcher.wait)
            # Before the body is read, and anything in it is decoded.
            batcher.require_room(1, settings.deadline)
            with admission.loaded.in_use():
                async with asyncio.timeout_at(admission.deadline):
                    yield admission
        except Overloaded as error:
            admission.refund()
            raise _overloaded(error.retry_after) from error
        except (DeadlineExceeded, TimeoutError) as error:
            if admission.took_too_long_to_decode:  # the server did all that it could, and is paid for it
                raise _too_much_to_decode(admission.images, settings.deadline) from error
            admission.refund()
            if not admission.has_body:  # the client is late, not the server
                message = f"The body of the request took more than {settings.deadline:g} s."
                raise APIError(408, "body_timeout", message) from error
            message = f"No prediction within {settings.deadline:g} s."
            raise APIError(504, "deadline_exceeded", message, retry_after=batcher.wait) from error
        except Exception as error:
            if _is_of_the_server(error):
                admission.refund()
            raise
        finally:
            self.requests -= 1
            self.images -= admission.images

    async def stop(self) -> None:
        """Nothing is parsed, decoded or written from now on."""
        self.documents.shutdown(wait=False)
        await self.decoders.stop()
        if self.audit is not None:
            await asyncio.to_thread(self.audit.close)


class Admission:
    """A request that was let in: what will answer it, and how many images it holds in memory."""

    def __init__(self, control: AdmissionControl, loaded: LoadedVersion, request: Request) -> None:
        self.control, self.loaded, self._request = control, loaded, request
        self.deadline = asyncio.get_running_loop().time() + control.models.settings.deadline
        self.images = 0
        self.has_body = False  # whether all of it has come
        self._turns = Turns()  # at the decoders
        self._digests: list[str] = []  # of the images as they were sent, where there is an audit log

    async def read_body(self) -> bytes:
        """The whole body of the request, which nobody else holds; it is read once. Raises ClientDisconnect."""
        body = b"".join([chunk async for chunk in self._request.stream()])
        self.has_body = True
        return body

    async def identify(self, images: Images) -> None:
        """Tell the audit log, where there is one, which images these are; called once, with all of them."""
        if self.control.audit is not None:
            self._digests = await self.control.audit.digests(images)

    def require_decoders(self, images: int) -> None:
        """Raise Overloaded where so many images would hardly be decoded in time, because others are at every process.

        Where a process is free the request is let in however long its images may take: the estimate may be wrong, and
        images that others have in another process do not hold it up.
        """
        decoders = self.control.decoders
        left = self.deadline - asyncio.get_running_loop().time()
        seconds = decoders.seconds_for(images)
        if decoders.are_busy and seconds > _DECODING_SHARE * left:
            raise Overloaded(seconds)

    @property
    def took_too_long_to_decode(self) -> bool:
        """Whether images are left that are not decoded, and those before them had most of the time for themselves.

        The one that a process is at does not count: it may hang for no fault of the image, and where it computes for
        too long, the system ends it.
        """
        most = _OWN_SHARE * self.control.models.settings.deadline
        return self._turns.left > 0 and self._turns.seconds > most

    async def decode(self, files: Sequence[bytes]) -> NDArray[np.uint8]:
        """Image files as uint8 [N, H, W, channels] of the model's size; the audit log is told which they are.

        Raises APIError, and ClientDisconnect where the client leaves while they wait; the others need not wait for it.
        """
        decoding = self._decode(files)
        if len(files) > 1 or self.control.decoders.are_busy:
            return await _unless_gone(self._request, decoding)
        return await decoding  # at once, so that watching the connection would cost more than it spares

    async def _decode(self, files: Sequence[bytes]) -> NDArray[np.uint8]:
        await self.identify(files)
        spec, settings = self.loaded.predictor.spec, self.control.models.settings
        try:
            arrays = await self.control.decoders.decode_all(
                files, spec, settings.max_pixels, self.deadline, self._turns
            )
        except DecoderUnavailable as error:
            log.error("%s", error)
            message = "No image can be decoded now; try again later."
            raise APIError(503, "not_ready", message, retry_after=1) from error
        except ImageError as error:
            status = 413 if error.code in _TOO_MUCH else 400
            raise APIError(status, error.code, f"{error}.") from error
        return np.stack(arrays)

    def take(self, images: int) -> None:
        """Count so many images and charge them to the client, before they are decoded.

        Raises Overloaded where all together are too many, APIError as `charge_request` does.
        """
        control = self.control
        if control.images + images > control.models.settings.max_queue:
            raise Overloaded(self.loaded.batcher.wait)
        charge_request(self._request, images)
        control.images += images
        self.images += images

    def refund(self) -> None:
        """Take the charge back, where the server could not answer: its failures are not the client's to pay."""
        refund(self._request, self.images)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of a request that succeeds, and trace it."""
        models = self.control.models
        span = models.tracing.stage(name) if models.tracing else contextlib.nullcontext()
        with span, models.metrics.stage(name):
            yield

    async def predict(self, images: NDArray[np.uint8]) -> Predictions:
        """Predict images [N, H, W, channels] through the batcher of the version that the request was admitted to.

        Raises ClientDisconnect where the client leaves while there is a queue; its place is free again. Raises APIError
        (500) where an answer is not made of numbers, which these images alone are to blame for.
        """
        models, batcher = self.control.models, self.loaded.batcher
        left = self.deadline - asyncio.get_running_loop().time()
        waiting = batcher.predict(images, left)
        # Only a request that is not in the next batch waits for long enough to be worth watching its connection.
        if batcher.rows > models.settings.max_batch:
            predictions = await _unless_gone(self._request, waiting)
        else:
            predictions = await waiting
        self._require_numbers(predictions)
        loaded = self.loaded
        models.metrics.predicted(loaded.name, loaded.version, predictions, loaded.predictor.spec)
        if self.control.audit is not None:
            self.control.audit.record(self._origin(), self._digests, predictions)
        return predictions

    def _require_numbers(self, predictions: Predictions) -> None:
        if predictions.is_finite.all():
            return
        name, version = self.loaded.name, self.loaded.version
        log.error("Model %s, version %s, gave an answer that is not made of numbers", name, version)
        message = "The model's answer to these images is not made of numbers."
        raise APIError(500, "invalid_answer", message)

    def _origin(self) -> Origin:
        state, loaded = self._request.scope["state"], self.loaded
        spec = loaded.predictor.spec
        return Origin(
            request_id=state.get("request_id"),
            key=state.get("key"),
            model=loaded.name,
            version=loaded.version,
            weights_digest=spec.weights_digest,
            function_digest=loaded.function_digest,
            precision=spec.precision,
            labels=spec.labels,
        )


def _is_of_the_server(error: Exception) -> bool:
    """Whether a request failed for what the server did: what it does not know how to tell becomes a 500."""
    if isinstance(error, APIError):
        return error.status >= 500
    return not isinstance(error, ClientDisconnect)


def _overloaded(retry_after: float) -> APIError:
    return APIError(
        429, "overloaded", "The server is at its limit; try again later.", retry_after=retry_after
    )


def _too_much_to_decode(images: int, deadline: float) -> APIError:
    message = f"The {images} images were not decoded within {deadline:g} s; send fewer or smaller ones in a request."
    return APIError(413, "too_many_images", message)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
