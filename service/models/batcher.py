"""The in-process micro-batcher: bounded by rows, greedy at rest, full batches under load.

One inference runs at a time, in a thread of its own. While it runs, requests queue up; when it ends, the
thread takes whatever is waiting as the next batch, up to ``max_batch`` rows. So a lone request never waits for company,
and under load batches fill by themselves. There is no timer to tune.

Inference is spent only on answers that somebody can still take. A request is refused at once unless it would be
answered a whole batch before its deadline, and a batch leaves out what would expire while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ducat_serve.predictor import Predictions

Images = NDArray[np.uint8]
Infer = Callable[[Images], Predictions]
Observe = Callable[[int, list[float], float], None]
Trace = Callable[[float, float, float, int], None]
STALL_SECONDS = 30.0  # at the least; what loads or pauses a machine for some seconds is no stall
_STALL_FACTOR = 3.0
_LOOK_SECONDS = 0.2  # between two looks at an inference that keeps the batcher from closing


def stalls_after(deadline: float, seconds_per_batch: float) -> float:
    """Seconds after which an inference is taken for one that never ends, as where a GPU or its driver hangs.

    That is long after the deadline, when nobody waits for it any more, and long after a full batch is done: a model
    that is only slow must not be ended for it.
    """
    return max(STALL_SECONDS, _STALL_FACTOR * max(deadline, seconds_per_batch))


class Overloaded(Exception):
    """The queue is full. ``retry_after`` is an estimate in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.1f} s")
        self.retry_after = retry_after


class DeadlineExceeded(Exception):
    """The prediction did not come in time."""


@dataclass(eq=False)
class _Piece:
    """Rows of one request that go through inference together."""

    images: Images
    result: asyncio.Future[Predictions]
    since: float  # `time.perf_counter`, as are all times here
    deadline: float
    batched: tuple[float, float, int] | None = None  # when its batch started and ended, and that batch's rows


class Batcher:
    """Collects images of concurrent requests into batches for one inference function.

    Args:
        infer: uint8 images [N, H, W, channels] to predictions of N rows; called in one thread.
        max_batch: most rows of one inference.
        max_queue: most rows waiting or running; beyond it requests are refused at once.
        observe: told of every batch: its rows, the seconds its pieces waited, the seconds it took.
        seconds_per_batch: what a full batch takes, as the warm-up measured it; 0 where nobody knows yet.
        stalls_after: seconds after which an inference is taken for one that never ends.
        trace: told in the context of every request, for each of its batches: since when it waited, when the batch
            started and ended (`time.perf_counter`), and the batch's rows.
    """

    def __init__(
        self,
        infer: Infer,
        *,
        max_batch: int,
        max_queue: int,
        seconds_per_batch: float = 0.0,
        stalls_after: float = math.inf,
        observe: Observe = lambda *_: None,
        trace: Trace | None = None,
    ) -> None:
        self._observe, self._trace = observe, trace
        self._infer = infer
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._waiting: deque[_Piece] = deque()
        self._lock = threading.Lock()  # the inference thread takes from it, the event loop removes
        self._rows = 0  # waiting or running
        self._seconds_per_batch = seconds_per_batch  # 0 until one was timed
        self._stalls_after = stalls_after
        self._inferring_since: float | None = None  # written by the inference thread alone
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._running: asyncio.Task[None] | None = None

    @property
    def rows(self) -> int:
        """Rows waiting or running."""
        return self._rows

    @property
    def wait(self) -> float:
        """Seconds until all that is waiting or running now will be done: an estimate, too low after small batches."""
        return math.ceil(self._rows / self._max_batch) * self._seconds_per_batch

    @property
    def stalled_seconds(self) -> float | None:
        """For how long an inference has been running that will hardly end any more; None where there is none."""
        since = self._inferring_since
        if since is None or (seconds := time.perf_counter() - since) < self._stalls_after:
            return None
        return seconds

    def require_room(self, rows: int, deadline: float) -> None:
        """Raise Overloaded where so many more rows do not fit, or would hardly be answered within ``deadline`` seconds.

        One batch is left to spare, since a batch that takes longer than others would make its whole queue late. Where
        nothing is waiting there is room in any case: otherwise one slow batch could close the door for good.
        """
        batches = math.ceil(rows / self._max_batch) + 1
        is_late = self._rows > 0 and self.wait + batches * self._seconds_per_batch > deadline
        if self._rows + rows > self._max_queue or is_late:
            raise Overloaded(retry_after=max(0.1, self.wait))

    async def predict(self, images: Images, deadline: float) -> Predictions:
        """Predict the images of one request, in order.

        Raises:
            Overloaded: as `require_room` does; nothing was done.
            DeadlineExceeded: no result within ``deadline`` seconds; the place in the queue is free again.
            Exception: what ``infer`` raised for these images (for them alone, not for their neighbours).
        """
        self.require_room(len(images), deadline)
        loop = asyncio.get_running_loop()
        now = time.perf_counter()
        starts = range(0, len(images), self._max_batch)
        pieces = [
            _Piece(images[s : s + self._max_batch], loop.create_future(), now, now + deadline) for s in starts
        ]
        for piece in pieces:
            self._rows += len(piece.images)
            piece.result.add_done_callback(functools.partial(self._release, piece))
            with self._lock:
                self._waiting.append(piece)
        if self._running is None:
            self._running = asyncio.create_task(self._drain())
        try:
            async with asyncio.timeout(deadline):
                results = [await piece.result for piece in pieces]
        except TimeoutError:
            raise DeadlineExceeded from None
        finally:
            for piece in pieces:
                # Where there is no result yet the client has gone, and its rows go too. Looking at the others keeps
                # asyncio from logging an error that another piece of this request has already raised.
                if not piece.result.cancel() and not piece.result.cancelled():
                    piece.result.exception()
            if self._trace is not None:
                for piece in pieces:
                    if piece.batched is not None:
                        self._trace(piece.since, *piece.batched)
        return results[0] if len(results) == 1 else _join(results)

    async def close(self) -> None:
        """Answer what is queued, then stop the inference thread. One that stalls is left behind."""
        while self._running is not None and self.stalled_seconds is None:
            await asyncio.wait([self._running], timeout=_LOOK_SECONDS)
        self._thread.shutdown(wait=self._running is None)

    def _release(self, piece: _Piece, _: object) -> None:
        self._rows -= len(piece.images)
        if piece.result.cancelled():
            # Its images go at once: those of clients that left would stay for as long as an inference takes.
            with self._lock, contextlib.suppress(ValueError):  # it may have been taken
                self._waiting.remove(piece)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                await loop.run_in_executor(self._thread, self._work, loop)
        finally:
            self._running = None

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Batch after batch in the inference thread, which never waits for a busy event loop in between."""
        while batch := self._next_batch(loop):
            started = time.perf_counter()
            results = self._infer_batch(batch)
            loop.call_soon_threadsafe(self._deliver, batch, results, started, time.perf_counter() - started)

    def _next_batch(self, loop: asyncio.AbstractEventLoop) -> list[_Piece]:
        """The first pieces that will be done in time; where none will, those that may be: an estimate can be wrong."""
        now = time.perf_counter()
        batch: list[_Piece] = []
        late: list[_Piece] = []
        rows = 0
        with self._lock:
            while self._waiting:
                piece = self._waiting[0]
                if piece.result.done() or piece.deadline <= now:  # nobody waits for it any more
                    pass
                elif piece.deadline < now + self._seconds_per_batch:
                    late.append(piece)
                elif batch and rows + len(piece.images) > self._max_batch:
                    break
                else:
                    batch.append(piece)
                    rows += len(piece.images)
                self._waiting.popleft()
        if not batch and late:
            rows = 0
            while late and rows + len(late[0].images) <= self._max_batch:
                rows += len(late[0].images)
                batch.append(late.pop(0))
        for piece in late:
            loop.call_soon_threadsafe(_expire, piece)
        return batch

    def _infer_batch(self, batch: list[_Piece]) -> list[Predictions | Exception]:
        try:
            parts = [piece.images for piece in batch]
            predictions = self._infer_timed(parts[0] if len(parts) == 1 else np.concatenate(parts))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            # Something in this batch is bad; only its own request should suffer.
            return [self._infer_batch([piece])[0] for piece in batch]
        ends = np.cumsum([len(piece.images) for piece in batch]).tolist()
        return [predictions.rows(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _infer_timed(self, images: Images) -> Predictions:
        self._inferring_since = time.perf_counter()
        try:
            return self._infer(images)
        finally:
            self._inferring_since = None

    def _deliver(
        self, batch: list[_Piece], results: list[Predictions | Exception], started: float, seconds: float
    ) -> None:
        rows = sum(len(piece.images) for piece in batch)
        for piece, result in zip(batch, results, strict=True):
            piece.batched = (started, started + seconds, rows)
            if piece.result.done():  # its client has gone
                continue
            if isinstance(result, Exception):
                piece.result.set_exception(result)
            else:
                piece.result.set_result(result)
        self._observe(rows, [started - piece.since for piece in batch], seconds)
        before = self._seconds_per_batch
        self._seconds_per_batch = before + 0.2 * (seconds - before) if before else seconds


def _expire(piece: _Piece) -> None:
    if not piece.result.done():  # its own timeout may have come first
        piece.result.set_exception(DeadlineExceeded())


def _join(results: list[Predictions]) -> Predictions:
    return Predictions(
        logits=np.concatenate([one.logits for one in results]),
        label=np.concatenate([one.label for one in results]),
        dummy_mass=np.concatenate([one.dummy_mass for one in results]),
    )
