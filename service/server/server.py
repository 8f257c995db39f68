"""Our uvicorn server: it drains before it stops, and has our bounds on connections."""

from __future__ import annotations

import asyncio
import functools
import resource
import signal
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ducat_serve.errors import DucatError
from service.middleware.host_check import is_loopback
from service.middleware.request_log import write_line
from service.models.registry import Models, log
from service.server.connections import MAX_CONNECTIONS, Connection, Connections, Refusal
from service.settings import Settings
from service.telemetry.metrics import Metrics

_FEWEST_CONNECTIONS = 16  # with fewer, one browser and one probe can keep everybody else out
_SHORTEST_TIMEOUT = 5.0  # seconds for a head, however short the deadline of a prediction
_OTHER_FILES = 128  # file descriptors that are no connections: libraries, logs, the model
# What uvicorn calls, and we override or call. In a version that calls it otherwise a bound would silently not hold.
_HOOKS = {
    uvicorn.Server: ("handle_exit", "on_tick", "shutdown"),
    HttpToolsProtocol: (
        *("connection_made", "connection_lost", "data_received", "shutdown", "send_400_response"),
        *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
        *("on_response_complete", "_unset_keepalive_if_required"),
    ),
}


class Server(uvicorn.Server):
    """Answers for ``drain`` seconds after SIGTERM, no longer ready, and only then stops listening.

    Raises DucatError where this version of uvicorn does not know what we override, or the system allows too few files.
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
            proxy_headers=False,  # else whoever asks from 127.0.0.1 chooses the address in the log
            timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]  # seconds, any number
            timeout_graceful_shutdown=settings.deadline + 1,  # type: ignore[arg-type]  # seconds, any number
        )
        super().__init__(config)
        self._models = models
        self._stop_at: float | None = None
        self._connections = Connections(
            max(settings.deadline, _SHORTEST_TIMEOUT),
            settings.keep_alive,
            most_connections(),
            functools.partial(_count_refusal, models.metrics),
        )
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
                    "pip install -c constraints.txt '.[serve]' in a clone of ducat-serve",
                )


def warn_of_open_port(settings: Settings) -> None:
    """Say so where other machines may ask, and need no key for it."""
    host = settings.host
    if host is not None and not settings.has_keys and not is_loopback(host, resolve=True):
        log.warning(
            "No keys: everyone who reaches this port (on %s) may ask. Keys: --keys-file, or DUCAT_SERVE_KEYS_FILE. "
            "TLS: put a proxy that ends it in front; the server speaks plain HTTP.",
            host,
        )


def _count_refusal(metrics: Metrics, refusal: Refusal) -> None:
    metrics.refused("other", refusal.status, refusal.code)
    write_line(
        request_id=refusal.request_id,
        status=refusal.status,
        seconds=refusal.seconds,
        client=refusal.client,
        reason=refusal.code,
    )


def most_connections() -> int:
    """As `require_connections` counts them; the log says where they are fewer than we want."""
    most = require_connections()
    if most < MAX_CONNECTIONS:
        log.warning(
            "At most %d connections at a time, not %d: the system allows this process %d open files (ulimit -Hn), and "
            "%d are wanted",
            *(most, MAX_CONNECTIONS, most + _OTHER_FILES, MAX_CONNECTIONS + _OTHER_FILES),
        )
    return most


def require_connections() -> int:
    """As many as we want and the system allows; the soft limit on open files is raised where it can be.

    Raises DucatError where that is too few to serve anybody.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = min(MAX_CONNECTIONS, soft - _OTHER_FILES)
    if most < _FEWEST_CONNECTIONS:
        raise DucatError(
            f"The system allows this process {soft} open files (ulimit -Hn); the server needs {wanted}, and at least "
            f"{_FEWEST_CONNECTIONS + _OTHER_FILES}.",
            f"raise the limit: `ulimit -Hn {wanted}` as root, `docker run --ulimit nofile={wanted}`, or systemd's "
            f"LimitNOFILE={wanted}",
        )
    return most
