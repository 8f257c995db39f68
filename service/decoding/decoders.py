"""A few processes that decode images for the server; one that does not answer in time is killed and replaced."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ducat_serve.images import ImageError
from ducat_serve.spec import ModelSpec
from service.decoding.protocol import ANSWER, READY, REQUEST

COUNT = 2  # a decoded 25-megapixel image takes hundreds of megabytes for a moment: so many at a time, no more
START_SECONDS = 30.0  # a third of a second on an idle machine
STUCK_SECONDS = 2.0  # the largest images that are allowed take half of that
_ROOT = Path(__file__).parents[2]
_COMMAND = (sys.executable, "-P", "-m", "service.decoding.worker")


class Decoders:
    """Decodes as many images at a time as there are processes; the others wait their turn.

    Args:
        count: processes.
        command: what starts one; it speaks `protocol`.
    """

    def __init__(self, count: int = COUNT, command: Sequence[str] = _COMMAND) -> None:
        self._workers = [_Worker(command) for _ in range(count)]
        self._free: asyncio.Queue[_Worker] = asyncio.Queue()
        for worker in self._workers:
            self._free.put_nowait(worker)

    async def start(self) -> None:
        """Start all processes, so that no request waits for one to start."""
        await asyncio.gather(*(worker.start() for worker in self._workers))

    async def decode(self, data: bytes, spec: ModelSpec, max_pixels: int) -> NDArray[np.uint8]:
        """One image file as uint8 [H, W, channels] of the model's size.

        To cancel it kills the process that is at it.

        Raises ImageError as `ducat_serve.images.decode` does, and where the process died of the image.
        """
        worker = await self._free.get()
        try:
            return await worker.decode(data, spec, max_pixels)
        finally:
            self._free.put_nowait(worker)

    @property
    def is_stuck(self) -> bool:
        """Whether every process has been busy with one image for longer than any sound image takes."""
        now = time.monotonic()
        return all(w.busy_since is not None and now - w.busy_since > STUCK_SECONDS for w in self._workers)

    async def stop(self) -> None:
        """End all processes."""
        await asyncio.gather(*(worker.stop() for worker in self._workers))


class _Worker:
    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: Process | None = None
        self._starting: asyncio.Task[Process] | None = None
        self._killed: list[Process] = []
        self.busy_since: float | None = None

    async def start(self) -> Process:
        """The process, ready to decode. Raises ConnectionError or IncompleteReadError where it does not start.

        To cancel this leaves it starting: with a deadline shorter than a start there would never be one.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Process:
        # Nothing of our environment: it holds keys, and this process reads what strangers send.
        environment = {"PYTHONPATH": str(_ROOT), "PATH": os.environ.get("PATH", "")}
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, start_new_session=True
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                await process.stdout.readexactly(len(READY))
        except TimeoutError as error:
            raise ConnectionError(f"the decoder did not start within {START_SECONDS:g} s") from error
        return process

    async def decode(self, data: bytes, spec: ModelSpec, max_pixels: int) -> NDArray[np.uint8]:
        height, width = spec.image_size
        head = REQUEST.pack(max_pixels, height, width, spec.channels, len(data))
        try:
            decoded, content = await self._ask(await self.start(), head, data)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            self._kill()
            raise ImageError("the image does not decode (its decoder ended)") from error
        if not decoded:
            code, _, message = content.decode().partition(":")
            raise ImageError(message, code)
        return np.frombuffer(content, np.uint8).reshape(height, width, spec.channels)

    async def _ask(self, process: Process, head: bytes, data: bytes) -> tuple[bool, bytes]:
        assert process.stdin is not None
        assert process.stdout is not None
        self.busy_since = time.monotonic()
        answered = False
        try:
            process.stdin.write(head)
            process.stdin.write(data)
            await process.stdin.drain()
            decoded, length = ANSWER.unpack(await process.stdout.readexactly(ANSWER.size))
            content = await process.stdout.readexactly(length)
            answered = True
        finally:
            self.busy_since = None
            if not answered:
                self._kill()
        return decoded, content

    def _kill(self) -> None:
        """The next image starts another."""
        process, self._process, self._starting = self._process, None, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        self._killed = [killed for killed in self._killed if killed.returncode is None] + [process]

    async def stop(self) -> None:
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
        self._kill()
        for process in self._killed:
            if process.stdin is not None:
                process.stdin.close()
            await process.wait()
