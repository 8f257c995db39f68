"""The in-process batcher, around a fake inference that records its batches."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ducat_serve.predictor import Predictions
from service.models.batcher import STALL_SECONDS, Batcher, DeadlineExceeded, Overloaded, stalls_after

WAIT = 10.0  # seconds; reached only when a test fails
BAD = 255


class FakeInfer:
    """Answers each image with its own pixel. While `gate` is clear, it blocks in its thread."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        pixels = images[:, 0, 0, 0]
        self.batches.append(pixels.tolist())
        assert self.gate.wait(2 * WAIT)
        if BAD in pixels:
            raise ValueError("a bad image")
        return Predictions(
            np.stack([pixels, pixels], axis=1).astype(np.float32),
            pixels.astype(np.int64),
            pixels.astype(np.float32) / np.float32(255),
        )


@pytest.fixture
def infer() -> Iterator[FakeInfer]:
    fake = FakeInfer()
    yield fake
    fake.gate.set()  # whatever failed, no thread stays blocked


def images(*pixels: int) -> NDArray[np.uint8]:
    return np.array(pixels, dtype=np.uint8).reshape(-1, 1, 1, 1)


def run(
    infer: FakeInfer,
    scenario: Callable[[Batcher], Coroutine[Any, Any, None]],
    max_batch: int = 8,
    max_queue: int = 64,
    seconds_per_batch: float = 0.0,
) -> None:
    """Run a scenario with a batcher, and close the batcher."""

    async def whole() -> None:
        batcher = Batcher(
            infer, max_batch=max_batch, max_queue=max_queue, seconds_per_batch=seconds_per_batch
        )
        try:
            async with asyncio.timeout(WAIT):
                await scenario(batcher)
        finally:
            infer.gate.set()
            await batcher.close()

    asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def block(batcher: Batcher, infer: FakeInfer, pixel: int = 0) -> asyncio.Task[Predictions]:
    """Start a request whose inference has begun and does not end before `infer.gate` is set."""
    infer.gate.clear()
    before = len(infer.batches)
    task = asyncio.create_task(batcher.predict(images(pixel), WAIT))
    await until(lambda: len(infer.batches) > before)
    return task


async def queued(batcher: Batcher, *requests: NDArray[np.uint8]) -> list[asyncio.Task[Predictions]]:
    """Requests that wait behind a blocked inference, in this order."""
    tasks = []
    for request in requests:
        rows = batcher.rows
        tasks.append(asyncio.create_task(batcher.predict(request, WAIT)))
        await until(lambda rows=rows, request=request: batcher.rows == rows + len(request))  # type: ignore[misc]
    return tasks


def test_every_request_gets_its_own_answer_in_order(infer: FakeInfer) -> None:
    random = np.random.default_rng(0)
    requests = [random.integers(0, BAD, (random.integers(1, 20), 1, 1, 1), np.uint8) for _ in range(200)]

    async def scenario(batcher: Batcher) -> None:
        answers = await asyncio.gather(*(batcher.predict(request, WAIT) for request in requests))
        for request, answer in zip(requests, answers, strict=True):
            pixels = request.ravel()
            np.testing.assert_array_equal(answer.label, pixels)
            np.testing.assert_array_equal(answer.logits, np.stack([pixels, pixels], axis=1))
            np.testing.assert_allclose(answer.dummy_mass, pixels / np.float32(255))
        assert batcher.rows == 0

    run(infer, scenario, max_batch=8, max_queue=10_000)
    assert max(map(len, infer.batches)) == 8
    assert sum(map(len, infer.batches)) == sum(map(len, requests))


def test_a_lone_request_is_inferred_at_once_and_waiting_ones_together(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer, 1)
        assert infer.batches == [[1]]
        others = await queued(batcher, images(2), images(3, 4), images(5))
        infer.gate.set()
        assert [(await task).label.tolist() for task in [first, *others]] == [[1], [2], [3, 4], [5]]

    run(infer, scenario)
    assert infer.batches == [[1], [2, 3, 4, 5]]


def test_a_batch_takes_no_more_than_max_batch_rows(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer)
        others = await queued(batcher, images(1, 2), images(3, 4), images(5))
        infer.gate.set()
        await asyncio.gather(first, *others)

    run(infer, scenario, max_batch=3)
    assert infer.batches == [[0], [1, 2], [3, 4, 5]]


def test_a_large_request_is_split_and_joined(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        answer = await batcher.predict(images(*range(10)), WAIT)
        assert answer.label.tolist() == list(range(10))
        assert answer.logits.shape == (10, 2)
        assert answer.dummy_mass.shape == (10,)

    run(infer, scenario, max_batch=4)
    assert infer.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_full_queue_refuses_before_any_work_and_recovers(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer)
        others = await queued(batcher, images(1, 2, 3))
        with pytest.raises(Overloaded) as caught:
            await batcher.predict(images(99, 99), 0.01)
        assert caught.value.retry_after > 0
        assert batcher.rows == 4  # the refused request left nothing behind
        others += await queued(batcher, images(4))  # one row still fits
        infer.gate.set()
        await asyncio.gather(first, *others)
        assert batcher.rows == 0
        answer = await batcher.predict(images(1, 2, 3, 4, 5), WAIT)
        assert answer.label.tolist() == [1, 2, 3, 4, 5]

    run(infer, scenario, max_queue=5)
    assert all(99 not in batch for batch in infer.batches)


def test_deadline_frees_the_place_in_the_queue(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer)
        with pytest.raises(DeadlineExceeded):
            await batcher.predict(images(99), 0.01)
        assert batcher.rows == 1
        infer.gate.set()
        await first
        assert batcher.rows == 0
        assert (await batcher.predict(images(7), WAIT)).label.tolist() == [7]

    run(infer, scenario)
    assert infer.batches == [[0], [7]]


def test_deadline_of_a_running_inference(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        infer.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await batcher.predict(images(1), 0.01)
        assert batcher.rows == 0
        infer.gate.set()
        assert (await batcher.predict(images(7), WAIT)).label.tolist() == [7]

    run(infer, scenario)


def test_a_client_that_goes_away_frees_its_rows(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer)
        gone, stays = await queued(batcher, images(*[99] * 10), images(7))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.rows == 2  # at once, while the first inference still runs
        infer.gate.set()
        assert (await stays).label.tolist() == [7]
        await first

    run(infer, scenario)
    assert infer.batches == [[0], [7]]


def test_a_bad_image_fails_alone(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer)
        good, bad, also_good = await queued(batcher, images(1), images(2, BAD), images(3))
        infer.gate.set()
        await first
        assert (await good).label.tolist() == [1]
        with pytest.raises(ValueError, match="a bad image"):
            await bad
        assert (await also_good).label.tolist() == [3]
        assert batcher.rows == 0

    run(infer, scenario)
    assert infer.batches[1] == [1, 2, BAD, 3]  # they did share a batch


def test_a_bad_image_in_the_first_part_of_a_split_request(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(ValueError, match="a bad image"):
            await batcher.predict(images(BAD, 1, 2, 3), WAIT)
        await until(lambda: batcher.rows == 0)
        assert (await batcher.predict(images(7), WAIT)).label.tolist() == [7]

    run(infer, scenario, max_batch=2)


def test_close_answers_what_is_queued(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer)
        others = await queued(batcher, *(images(pixel) for pixel in range(1, 6)))
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        assert not closing.done()
        infer.gate.set()
        await closing
        assert [task.result().label.tolist() for task in [first, *others]] == [[n] for n in range(6)]

    run(infer, scenario, max_batch=2)


def test_a_queue_longer_than_the_deadline_refuses_at_once(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        infer.gate.clear()
        asyncio.get_running_loop().call_later(0.1, infer.gate.set)
        await batcher.predict(images(1), WAIT)  # now it knows its pace: 0.1 s a batch, or slower
        infer.gate.clear()
        waiting = asyncio.create_task(batcher.predict(images(2, 3, 4, 5), WAIT))
        await until(lambda: batcher.rows == 4)
        with pytest.raises(Overloaded) as refused:
            await batcher.predict(images(6), 0.15)
        assert refused.value.retry_after > 0.15
        assert batcher.rows == 4
        infer.gate.set()
        assert (await waiting).label.tolist() == [2, 3, 4, 5]

    run(infer, scenario, max_batch=2)


def test_a_burst_after_lone_requests_is_not_refused(infer: FakeInfer) -> None:
    """A batch of one tells what a batch costs, not what a row of a full one does."""

    async def scenario(batcher: Batcher) -> None:
        infer.gate.clear()
        asyncio.get_running_loop().call_later(0.1, infer.gate.set)
        await batcher.predict(images(1), WAIT)
        burst = await asyncio.gather(*(batcher.predict(images(n), 2.0) for n in range(60)))
        assert [answer.label.tolist() for answer in burst] == [[n] for n in range(60)]

    run(infer, scenario)


def test_a_request_is_refused_unless_a_batch_is_left_to_spare(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer)
        with pytest.raises(Overloaded) as refused:
            # One batch runs, one would be its own, and one is to spare.
            await batcher.predict(images(99), 2.9)
        assert refused.value.retry_after == pytest.approx(1.0)  # the queue's wait
        accepted = asyncio.create_task(batcher.predict(images(1), 3.1))
        await until(lambda: batcher.rows == 2)
        infer.gate.set()
        assert (await accepted).label.tolist() == [1]
        await first

    run(infer, scenario, seconds_per_batch=1.0)
    assert infer.batches == [[0], [1]]


def test_nothing_waiting_means_room_however_slow_a_batch_was(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        assert (await batcher.predict(images(1), 1.0)).label.tolist() == [1]

    run(infer, scenario, seconds_per_batch=100.0)


def test_no_inference_is_spent_on_what_will_be_late(infer: FakeInfer) -> None:
    """While a batch takes far longer than expected the deadlines behind it come nearer than a batch is long."""

    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer)
        late = [asyncio.create_task(batcher.predict(images(99), 0.65)) for _ in range(3)]
        early = asyncio.create_task(batcher.predict(images(1), WAIT))
        await until(lambda: batcher.rows == 5)
        await asyncio.sleep(0.5)  # what is left is less than a batch takes, but not yet nothing
        infer.gate.set()
        assert (await early).label.tolist() == [1]
        for task in late:
            with pytest.raises(DeadlineExceeded):
                await task
        await first
        assert batcher.rows == 0

    run(infer, scenario, seconds_per_batch=0.2)
    assert infer.batches == [[0], [1]]


def test_an_estimate_that_is_too_long_does_not_starve_what_waits(infer: FakeInfer) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.predict(images(1), 1.0))
        # Although a batch is said to take longer than its deadline.
        assert (await first).label.tolist() == [1]

    run(infer, scenario, seconds_per_batch=WAIT)
    assert infer.batches == [[1]]


def test_a_split_request_that_will_be_late_leaves_no_error_behind(
    infer: FakeInfer, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer)
        late = asyncio.create_task(batcher.predict(images(*[99] * 6), 0.95))
        early = asyncio.create_task(batcher.predict(images(1), WAIT))
        await until(lambda: batcher.rows == 8)
        await asyncio.sleep(0.8)
        infer.gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        await asyncio.gather(first, early)
        del late
        gc.collect()

    run(infer, scenario, max_batch=2, seconds_per_batch=0.18)
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_images_of_clients_that_left_go_at_once(infer: FakeInfer) -> None:
    """While one inference takes its time, uploads whose clients leave must not pile up behind it."""

    async def scenario(batcher: Batcher) -> None:
        first = await block(batcher, infer)
        request = images(7, 8)
        held = weakref.ref(request)
        gone = asyncio.create_task(batcher.predict(request, WAIT))
        del request
        await until(lambda: batcher.rows == 3)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        del gone
        await asyncio.sleep(0)
        gc.collect()
        assert held() is None
        infer.gate.set()
        await first

    run(infer, scenario)
    assert infer.batches == [[0]]


async def _leave_one_running(batcher: Batcher, infer: FakeInfer) -> None:
    """An inference for nobody: its client has gone."""
    request = asyncio.create_task(batcher.predict(images(1), WAIT))
    await until(lambda: bool(infer.batches))
    request.cancel()


def test_an_inference_that_never_ends_is_known_and_does_not_keep_the_batcher_from_closing(
    infer: FakeInfer,
) -> None:
    infer.gate.clear()

    async def scenario() -> None:
        batcher = Batcher(infer, max_batch=8, max_queue=64, stalls_after=0.1)
        async with asyncio.timeout(WAIT):
            await _leave_one_running(batcher, infer)
            await until(lambda: batcher.stalled_seconds is not None)
            await batcher.close()
        assert not infer.gate.is_set()
        infer.gate.set()
        async with asyncio.timeout(WAIT):
            await until(lambda: batcher.stalled_seconds is None)

    asyncio.run(scenario())


def test_a_slow_inference_is_no_stall_and_closing_waits_for_it(infer: FakeInfer) -> None:
    infer.gate.clear()

    async def scenario(batcher: Batcher) -> None:
        await _leave_one_running(batcher, infer)
        closing = asyncio.create_task(batcher.close())
        await asyncio.wait([closing], timeout=0.5)
        assert batcher.stalled_seconds is None
        assert not closing.done()
        infer.gate.set()
        await closing

    run(infer, scenario)


@pytest.mark.parametrize(
    ("deadline", "seconds_per_batch", "most"),
    [(0.1, 0.0, STALL_SECONDS), (60.0, 0.1, 180.0), (10.0, 60.0, 180.0)],
)
def test_the_slowest_model_has_time_for_several_batches_before_it_is_taken_to_stall(
    deadline: float, seconds_per_batch: float, most: float
) -> None:
    assert stalls_after(deadline, seconds_per_batch) == most
