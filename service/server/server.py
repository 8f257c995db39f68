"""Our uvicorn server: it drains before it stops, and has our bounds on connections."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ducat_serve.errors import DucatError
from service.models.registry import Models, log
from service.server.connections import MAX_CONNECTIONS, Connection, Connections

_OTHER_FILES = 128  # file descriptors that are no connections: libraries, logs, the model
# What uvicorn calls, and we override. In a version that calls it otherwise a bound would silently not hold.
_HOOKS = {
    uvicorn.Server: ("handle_exit", "on_tick", "shutdown"),
    HttpToolsProtocol: (
        *("connection_made", "connection_lost", "data_received", "shutdown", "send_400_response"),
        *("on_message_begin", "on_header", "on_headers_complete", "on_body", "on_response_complete"),
    ),
}


class Server(uvicorn.Server):
    """Answers for ``drain`` seconds after SIGTERM, no longer ready, and only then stops listening.

    Raises DucatError where this version of uvicorn does not know what we override.
    """

    def __init__(self, app: ASGIApp, models: Models) -> None:
        _require_hooks()
        settings = models.settings
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,  # logging belongs to the whole process, see process.py
            access_log=False,  # the application writes its own
            server_header=False,
            timeout_graceful_shutdown=settings.deadline + 1,  # type: ignore[arg-type]  # seconds, any number
        )
        super().__init__(config)
        self._models = models
        self._stop_at: float | None = None
        # However short the deadline: connections are kept as long between two requests.
        timeout = max(settings.deadline, config.timeout_keep_alive)
        self._connections = Connections(timeout, _most_connections())
        self.server_state = self._connections

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's signature
        """SIGTERM begins to drain; a second one, or Ctrl-C, stops listening at once, and a second Ctrl-C ends all.

        A server that was never ready has nobody to drain for. uvicorn's own method would also have the process die of
        the signal in the end, but a server that was told to stop and did has not failed.
        """
        if sig == signal.SIGTERM and self._models.is_loaded and not self._models.is_draining:
            self._models.is_draining = self._connections.is_draining = True
        elif sig == signal.SIGINT and self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second."""
        now = asyncio.get_running_loop().time()
        if counter % 10 == 0:
            self._connections.sweep(now)
        if self._models.is_draining and self._stop_at is None:
            drain = self._models.settings.drain
            log.info("SIGTERM: no longer ready; requests are answered for %g s more", drain)
            self._stop_at = now + drain
            self._connections.drain()
        if self._stop_at is not None and now >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer what has come, end."""
        self._connections.drain()
        for listening in sockets or []:
            await self._stop_listening(listening)
        await super().shutdown(sockets)

    async def _stop_listening(self, listening: socket.socket) -> None:
        """Take every connection that the system has made for us, then let nobody in.

        Closing the socket alone would cut the connections that wait in its queue. And the event loop closes it a
        moment later only, in which others would come.
        """
        accepted = []
        try:
            while True:
                accepted.append(listening.accept()[0])
        except OSError:  # none is left
            listening.shutdown(socket.SHUT_RDWR)
        for server in self.servers:
            server.close()
        for connection in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        protocol = self.config.http_protocol_class
        return protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]


def _require_hooks() -> None:
    for base, names in _HOOKS.items():
        for name in names:
            if not hasattr(base, name):
                raise DucatError(
                    f"This version of uvicorn is not one that the server knows: {base.__name__}.{name} is gone.",
                    "pip install -c constraints.txt 'ducat-serve[serve]'",
                )


def _most_connections() -> int:
    """As many as we want and the system allows; the soft limit on open files is raised where it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(MAX_CONNECTIONS, soft - _OTHER_FILES))
