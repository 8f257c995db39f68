"""A few processes that decode images for the server; one that does not answer in time is killed and replaced.

A process takes long to start, so one that is at an image whose client no longer waits is let finish, and its answer is
thrown away. Only where it goes on for too long is it killed. One that computes for longer than any sound image takes
ends by itself, and its client is told so. (One that only waits is none of an image's doing: the deadline ends it.)
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ducat_serve.images import ImageError
from ducat_serve.spec import ModelSpec
from service.child_process import child_environment
from service.decoding.protocol import ANSWER, MAX_WORDS, NUMBER, READY, REQUEST

RETRY_SECONDS = 1.0  # between two attempts to start a process where none starts
START_SECONDS = 30.0  # a third of a second on an idle machine
STUCK_SECONDS = 5.0  # for an image that nobody awaits any more; the largest take a quarter of that
_NEWEST_WEIGHT = 0.2  # of an image in the average of the seconds that one takes
_WORDS = 500  # characters of what a process says that does not start
_WORDS_SECONDS = 1.0  # something that it has started may keep its stderr open
_TOO_SLOW = "the image takes longer to decode than any sound one; save it anew, or make it smaller"
_COMMAND = (sys.executable, "-P", "-m", "service.decoding.worker")


class DecoderUnavailable(Exception):
    """No process could be started to decode an image; that is no fault of the image."""


@dataclass(eq=False)
class Turns:
    """What one request has of the decoders."""

    left: int = 0  # images that are not decoded yet
    seconds: float = 0.0  # for how long processes were at its images that they answered; to wait is not in it


class Decoders:
    """Decodes as many images at a time as there are processes; the others wait their turn.

    A request has one of its images decoded at a time, so that one of many images leaves turns to those of a few.

    Args:
        count: processes. A decoded 25-megapixel image takes hundreds of megabytes for a moment in each.
        command: what starts one; it speaks `protocol`.
    """

    def __init__(self, count: int, command: Sequence[str] = _COMMAND) -> None:
        self._workers = [_Worker(command) for _ in range(count)]
        self._free: asyncio.Queue[_Worker] = asyncio.Queue()
        for worker in self._workers:
            self._free.put_nowait(worker)
        self._in_line = 0  # images that wait for a process
        self._requests: list[Turns] = []
        self._retrying: asyncio.Task[None] | None = None
        self._seconds_per_image = 0.0  # a moving average of those that were answered; 0 until one was

    async def start(self) -> None:
        """Start all processes, so that no request waits for one to start. Raises DecoderUnavailable."""
        await asyncio.gather(*(worker.start() for worker in self._workers))

    @property
    def waiting(self) -> int:
        """Images that wait for a process, or that one is at."""
        return sum(request.left for request in self._requests)

    @property
    def are_busy(self) -> bool:
        """Whether one more image would have to wait."""
        return self._free.empty()

    def seconds_for(self, images: int) -> float:
        """An estimate of the seconds until so many images of one more request would be decoded.

        Each of them waits for one image of every other request.
        """
        ahead = sum(min(images, request.left) for request in self._requests)
        return self._seconds_per_image * max(images, (ahead + images) / len(self._workers))

    async def decode_all(
        self, files: Sequence[bytes], spec: ModelSpec, max_pixels: int, deadline: float, turns: Turns
    ) -> list[NDArray[np.uint8]]:
        """All image files of one request, as `decode` does it. An ImageError says which of several it is about.

        ``turns`` are the request's own, and say how far it is at any time.
        """
        turns.left = len(files)
        self._requests.append(turns)
        arrays = []
        try:
            for number, data in enumerate(files, 1):
                try:
                    arrays.append(await self.decode(data, spec, max_pixels, deadline, turns))
                except ImageError as error:
                    which = f"Image {number}: " if len(files) > 1 else ""
                    raise ImageError(f"{which}{error}", error.code) from error
                turns.left -= 1
        finally:
            self._requests.remove(turns)
        return arrays

    async def decode(
        self,
        data: bytes,
        spec: ModelSpec,
        max_pixels: int,
        deadline: float = math.inf,
        turns: Turns | None = None,
    ) -> NDArray[np.uint8]:
        """One image file as uint8 [H, W, channels] of the model's size.

        To cancel it leaves the process to finish, and has it killed where that takes more than STUCK_SECONDS in all.

        Args:
            data: the file.
            spec: of the model.
            max_pixels: of the image, before it is resized.
            deadline: when nobody waits for it any more, by the time of the event loop.
            turns: of its request, where somebody asks for them.

        Raises:
            ImageError: as `ducat_serve.images.decode` does, and where the process died of the image; its code is
                image_too_slow where that took more CPU time than any sound image.
            DecoderUnavailable: no process could be started; the next image tries again.
            TimeoutError: its turn came so late that it would hardly be done by the deadline; others go first.
        """
        loop = asyncio.get_running_loop()
        self._in_line += 1
        try:
            worker = await self._free.get()
        finally:
            self._in_line -= 1
        try:
            # The last in line is tried in any case: otherwise one slow image could close the door for good.
            if self._in_line and loop.time() + self._seconds_per_image > deadline:
                raise TimeoutError
            await worker.start()
        except BaseException:
            self._free.put_nowait(worker)
            if self.do_not_start and (self._retrying is None or self._retrying.done()):
                self._retrying = asyncio.create_task(self._retry())
            raise
        decoding = asyncio.create_task(self._decode_by(worker, data, spec, max_pixels))
        decoding.add_done_callback(_look_at)
        started = loop.time()
        try:
            await asyncio.wait([decoding])
        except asyncio.CancelledError:
            loop.call_later(max(0.0, STUCK_SECONDS - worker.busy_seconds), decoding.cancel)
            raise
        if turns is not None:
            turns.seconds += loop.time() - started
        return decoding.result()

    async def _decode_by(
        self, worker: _Worker, data: bytes, spec: ModelSpec, max_pixels: int
    ) -> NDArray[np.uint8]:
        started = time.monotonic()
        try:
            return await worker.decode(data, spec, max_pixels)
        finally:
            # One that it was killed for, or died of, says nothing of how long others take.
            if worker.is_running:
                seconds, before = time.monotonic() - started, self._seconds_per_image
                self._seconds_per_image = before + _NEWEST_WEIGHT * (seconds - before) if before else seconds
            self._free.put_nowait(worker)

    @property
    def do_not_start(self) -> bool:
        """Whether none could be started when that was tried last. However busy they are, nobody's images make it so."""
        return all(worker.does_not_start for worker in self._workers)

    async def _retry(self) -> None:
        """Try until one starts: nobody sends a server an image that is not ready."""
        while self.do_not_start:
            await asyncio.sleep(RETRY_SECONDS)
            worker = await self._free.get()
            try:
                with contextlib.suppress(DecoderUnavailable):
                    await worker.start()
            finally:
                self._free.put_nowait(worker)

    async def stop(self) -> None:
        """End all processes, for good."""
        if self._retrying is not None:
            self._retrying.cancel()
        await asyncio.gather(*(worker.stop() for worker in self._workers))


async def _ended_by(process: Process) -> int | None:
    """The signal that ended a process which no longer answers; None where it ended by itself, or is still there."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WORDS_SECONDS):  # what is killed now would have ended by that
            return -await process.wait()
    return None


async def _last_words(process: Process) -> str:
    """What a process that ended before it could decode said on stderr, which it closes once it can."""
    assert process.stderr is not None
    says = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WORDS_SECONDS):
            says = await process.stderr.read()
    return says.decode(errors="replace").strip()[-_WORDS:] or "it ended without a word"


class _Worker:
    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: Process | None = None
        self._starting: asyncio.Task[Process] | None = None
        self._killed: list[Process] = []
        self._busy_since: float | None = None
        self.does_not_start = self._stopped = False

    @property
    def is_running(self) -> bool:
        """Whether there is a process that nobody has given up."""
        return self._process is not None

    @property
    def busy_seconds(self) -> float:
        """For how long it has been at the image that it decodes."""
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    async def start(self) -> Process:
        """The process, ready to decode. Raises DecoderUnavailable.

        To cancel this leaves it starting: with a deadline shorter than a start there would never be one.
        """
        if self._stopped:
            raise DecoderUnavailable("the server is stopping")
        if self._process is not None and self._process.returncode is not None:  # it ended between two images
            self._kill()
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        try:
            process = await asyncio.shield(self._starting)
        except (OSError, RuntimeError, EOFError) as error:
            # No memory, no process or file to be had, or it ended.
            self._kill()
            self.does_not_start = True
            raise DecoderUnavailable(f"an image decoder did not start: {error}") from error
        self.does_not_start = False
        return process

    async def _start(self) -> Process:
        # Nothing else of our environment: it holds keys, and this process reads what strangers send.
        environment = child_environment()
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment, start_new_session=True
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):  # a TimeoutError is an OSError
                await process.stdout.readexactly(len(READY))
        except EOFError as error:
            raise RuntimeError(await _last_words(process)) from error
        return process

    async def decode(self, data: bytes, spec: ModelSpec, max_pixels: int) -> NDArray[np.uint8]:
        shape = (*spec.image_size, spec.channels)
        process, number = await self.start(), secrets.token_bytes(NUMBER)
        request = REQUEST.pack(number, max_pixels, *shape, len(data))
        self._busy_since = time.monotonic()
        answered = False
        try:
            words, pixels = await _ask(process, number, request, data, math.prod(shape))
            answered = True
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            if isinstance(error, EOFError) and await _ended_by(process) == signal.SIGXCPU:
                raise ImageError(_TOO_SLOW, "image_too_slow") from error
            raise ImageError("the image does not decode (its decoder ended)") from error
        finally:
            self._busy_since = None
            if not answered:
                self._kill()
        if pixels is None:
            code, _, message = words.partition(":")
            raise ImageError(message, code)
        return np.frombuffer(pixels, np.uint8).reshape(shape)

    def _kill(self) -> None:
        """The next image starts another."""
        process, self._process, self._starting = self._process, None, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        self._killed = [killed for killed in self._killed if killed.returncode is None] + [process]

    async def stop(self) -> None:
        self._stopped = True
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
        self._kill()
        for process in self._killed:
            if process.stdin is not None:
                process.stdin.close()
            await process.wait()


def _look_at(decoding: asyncio.Task[NDArray[np.uint8]]) -> None:
    """asyncio logs an error that nobody looked at, as where the client no longer waited for the image."""
    if not decoding.cancelled():
        decoding.exception()


async def _ask(
    process: Process, number: bytes, request: bytes, data: bytes, size: int
) -> tuple[str, bytes | None]:
    """Words, or pixels of ``size`` bytes. Raises ValueError for an answer that no decoder of ours gives."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.writelines((request, data))  # in one system call
    await process.stdin.drain()
    answered, decoded, length = ANSWER.unpack(await process.stdout.readexactly(ANSWER.size))
    if answered != number or (length != size if decoded else length > MAX_WORDS):
        raise ValueError("the decoder answered another request")
    content = await process.stdout.readexactly(length)
    return ("", content) if decoded else (content.decode(), None)
