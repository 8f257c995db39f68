"""SIGHUP: read the models again, as `POST /admin/reload` does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator

from service.errors import Problem
from service.models.registry import Models, log


@contextlib.contextmanager
def reloading_on_sighup(models: Models) -> Iterator[None]:
    """While the server runs. Outside the main thread, where no signal arrives (in tests), it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, running = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def start() -> None:
        task = asyncio.create_task(_reload(models))
        running.add(task)
        task.add_done_callback(running.discard)

    loop.add_signal_handler(signal.SIGHUP, start)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _reload(models: Models) -> None:
    try:
        await models.reload()
        log.info("SIGHUP: every model was read again")
    except Problem as problem:
        log.error("SIGHUP: %s", problem.message)
