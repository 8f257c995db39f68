"""The uvicorn server under BentoML's worker: it leaves politely, and has our bounds on connections.

BentoML makes its server itself, `uvicorn.Server(config)`, and offers no way in. `install` puts ours in that place; it
has the supervisor look after its worker every second, and pass Ctrl-C and SIGHUP on. Where a future version goes
another way, the server refuses to start.
"""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import signal
import socket
from pathlib import Path
from types import FrameType

import psutil
import uvicorn
from bentoml._internal.utils import circus
from circus.sighandler import SysHandler
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ducat_serve.errors import DucatError
from service.models.registry import Models, log
from service.server.connections import MAX_CONNECTIONS, Connection, Connections

_OTHER_FILES = 128  # file descriptors that are no connections: libraries, logs, the model
# BentoML's own is ten: a worker that was killed would be missed for longer than it takes to start.
_CHECK_SECONDS = 1.0
_OVERRIDDEN = {
    SysHandler: ("handle_int", "handle_hup", "quit"),
    uvicorn.Server: ("handle_exit", "on_tick", "shutdown"),
    HttpToolsProtocol: (
        *("connection_made", "connection_lost", "data_received", "shutdown", "send_400_response"),
        *("on_message_begin", "on_header", "on_headers_complete", "on_body", "on_response_complete"),
    ),
}


def install(models: Models) -> None:
    """Have BentoML use our server, in this process and before it starts one. Raises DucatError where it cannot."""
    for base, names in _OVERRIDDEN.items():
        for name in names:
            if not hasattr(base, name):
                raise _other_version(f"{base.__name__}.{name} is gone")
    uvicorn.Server = functools.partial(Server, models=models)  # type: ignore[misc, assignment]
    SysHandler.handle_int, SysHandler.handle_hup = _interrupt, _hang_up
    circus.create_standalone_arbiter = functools.partial(
        circus.create_standalone_arbiter, check_delay=_CHECK_SECONDS
    )


def _interrupt(supervisor: SysHandler) -> None:
    """On Ctrl-C the supervisor would send SIGTERM, as for a polite end; its workers are out of the terminal's reach."""
    try:
        _send(supervisor, signal.SIGINT)
    finally:
        supervisor.quit()


def _hang_up(supervisor: SysHandler) -> None:
    """On SIGHUP the supervisor would start other workers, able to serve or not; ours reload in place.

    One that is only starting would die of it, and is about to read its models anyway.
    """
    _send(supervisor, signal.SIGHUP, if_handled=True)


def _send(supervisor: SysHandler, number: signal.Signals, if_handled: bool = False) -> None:
    for watcher in supervisor.controller.arbiter.iter_watchers():
        for worker in watcher.get_active_pids():
            if not if_handled or _handles(worker, number):
                os.kill(worker, number)


def _handles(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, as Linux says; elsewhere we cannot know."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
    handled = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(handled >> (number - 1) & 1)


def require_installed() -> None:
    """Raises DucatError in a worker whose server is not ours."""
    if not Server.is_running:
        raise _other_version("BentoML started another server than ours")


class Server(uvicorn.Server):
    """Answers for ``drain`` seconds after SIGTERM, no longer ready, and only then stops listening."""

    is_running = False

    def __init__(self, config: uvicorn.Config, models: Models) -> None:
        super().__init__(config)
        Server.is_running = True
        settings = models.settings
        config.http, config.ws = Connection, "none"
        config.timeout_graceful_shutdown = settings.deadline + 1  # type: ignore[assignment]  # seconds, any number
        self._models = models
        self._stop_at: float | None = None
        # However short the deadline: connections are kept as long between two requests.
        patience = max(settings.deadline, config.timeout_keep_alive)
        self._connections = Connections(patience, _most_connections())
        self.server_state = self._connections

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM begins to drain; a second one, or Ctrl-C, stops at once."""
        if sig != signal.SIGTERM or self._models.is_draining:
            super().handle_exit(sig, frame)
            return
        self._models.is_draining = self._connections.is_draining = True

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
        if self._stop_at is not None and now >= self._stop_at and not self.should_exit:
            super().handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer what has come, end."""
        self._connections.drain()
        if not _has_siblings():
            for listening in sockets or []:
                await self._stop_listening(listening)
        await super().shutdown(sockets)

    async def _stop_listening(self, listening: socket.socket) -> None:
        """Take every connection that the system has made for us, then let nobody in.

        BentoML's supervisor has the socket too: closing it here would leave clients connected, to nobody.
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


def _most_connections() -> int:
    """As many as we want and the system allows; the soft limit on open files is raised where it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(MAX_CONNECTIONS, soft - _OTHER_FILES))


def _has_siblings() -> bool:
    """Whether another worker listens on the same socket, as while the supervisor replaces this one."""
    try:
        return len(psutil.Process(os.getppid()).children()) > 1
    except psutil.Error:
        return False


def _other_version(what: str) -> DucatError:
    return DucatError(
        f"This version of BentoML or uvicorn is not one that the service knows: {what}.",
        "pip install -c constraints.txt 'ducat-serve[serve]'",
    )
