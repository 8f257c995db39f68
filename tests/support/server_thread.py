"""Our server in a thread of this process, for tests that ask it over a real socket and look inside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette

from service.models.registry import Models
from service.server.process import bind
from service.server.server import Server
from tests.support.http_client import WAIT, until


@contextmanager
def listening(app: Starlette, models: Models, host: str = "127.0.0.1") -> Iterator[int]:
    """The port at which ``app`` is served, once ``models`` are loaded."""
    server = Server(app, models)
    with bind(host, 0) as bound:
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        try:
            until(lambda: server.started and models.is_loaded)
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(WAIT)
