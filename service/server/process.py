"""The process that `ducat serve` becomes: the BentoML service's application in our uvicorn server.

    DUCAT_SERVE_MODEL=model.onnx python -P -m service.server.process --host 127.0.0.1 --port 3000

One process, one listening port. It ends with 0 after SIGTERM and Ctrl-C, and with another code where it could not start
or serve, or an inference never ended; starting it anew is the work of what runs it (compose, Kubernetes, systemd).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import ipaddress
import logging.config
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from ducat_serve.errors import DucatError

NEVER_READY = 1  # exit code
_LAST_PORT = 65535
_LAST_SECONDS = 10.0  # for this process to end once the server has; mostly it takes a tenth of one
_BACKLOG = 2048  # connections that the system makes before we take them: uvicorn's default
_LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "service.telemetry.logs.JsonLines"}},
    "handlers": {
        "stdout": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}
    },
    "loggers": {
        # BentoML gives its logger a handler of its own when it is imported.
        "bentoml": {"level": "WARNING", "handlers": [], "propagate": True},
        # uvicorn warns of what clients send; our connections and our application write a line of their own for that.
        "uvicorn.error": {"level": "ERROR"},
    },
    "root": {"level": "WARNING", "handlers": ["stdout"]},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal; never returns."""
    parser = argparse.ArgumentParser(
        prog="python -m service.server.process", description="Settings are DUCAT_SERVE_... variables."
    )
    parser.add_argument("--host", type=without_brackets, default="127.0.0.1")
    parser.add_argument("--port", type=_port, default=3000)
    asked = parser.parse_args(arguments)
    ignore_sighup()
    # Until the server takes it over. The first process of a container is sent no signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # As settings are read: from the environment, at the first import.
    os.environ["DUCAT_SERVE_HOST"] = asked.host
    try:
        code = serve(bind(asked.host, asked.port))
        # Python waits for its threads, and an inference on a GPU that hangs would keep it for ever. So the process then
        # ends with 1, and says in which thread; from C, where nothing that Python or a library waits for can delay it.
        faulthandler.dump_traceback_later(_LAST_SECONDS, exit=True)
    except DucatError as error:
        from ducat_serve.output import Output

        Output().fail(error.cause, error.next_step)
        code = error.exit_code
    except KeyboardInterrupt:  # before the server has taken Ctrl-C over
        code = 128 + signal.SIGINT
    sys.exit(code)


def without_brackets(host: str) -> str:
    """An IPv6 address may be given as in a URL: [::1]."""
    return host.removeprefix("[").removesuffix("]")


def _port(text: str) -> int:
    if not 1 <= (port := int(text)) <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{port} is not in the range 1 to {_LAST_PORT}")
    return port


def ignore_sighup() -> None:
    """Until the models are there to be read again; SIGHUP would end the process. The exec of a command keeps this."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address that does not listen yet. Raises DucatError where it cannot be had."""
    bound = None
    try:
        family, address = _address(host, port)
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise _cannot_listen(host, port, error) from error
    return bound


def listen(bound: socket.socket) -> None:
    """Let clients connect from now on. Raises DucatError where another process listens on this port by now.

    Two may be bound to one port as long as none of them listens; the event loop would say nothing of the failure.
    """
    try:
        bound.listen(_BACKLOG)
    except OSError as error:
        host, port, *_ = bound.getsockname()
        bound.close()
        raise _cannot_listen(host, port, error) from error


def _cannot_listen(host: str, port: int, error: OSError) -> DucatError:
    if error.errno == errno.EADDRINUSE:
        remedy = f"choose another, e.g. --port {port + 1 if port < _LAST_PORT else 3000}"
    elif error.errno == errno.EACCES:
        remedy = "choose a port from 1024 on, e.g. --port 3000"
    else:
        remedy = "choose an address of this machine, e.g. --host 127.0.0.1; 0.0.0.0 is all of them"
    return DucatError(f"Cannot listen on {host}:{port}: {error.strerror or error}.", remedy)


def _address(
    host: str, port: int
) -> tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]:
    """Where to listen. Only a name is looked up: it may stand for an IPv6 address alone, as localhost on some machines.

    Raises OSError for a name that nobody knows.
    """
    with contextlib.suppress(ValueError):
        version = ipaddress.ip_address(host).version
        return (socket.AF_INET if version == 4 else socket.AF_INET6), (host, port)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, (str(address[0]), int(address[1]))


def serve(bound: socket.socket) -> int:
    """Run the service on a bound socket until a signal; returns the exit code. Raises DucatError for wrong settings."""
    from service.app import DucatService, models
    from service.server.bentoml_overrides import without_layers, without_pages
    from service.server.server import Server, warn_of_open_port

    logging.config.dictConfig(_LOGGING)
    logging.captureWarnings(True)
    warn_of_open_port(models.settings)
    app = DucatService.to_asgi()  # type: ignore[attr-defined]  # bentoml.service makes it a Service
    app = without_pages(without_layers(app))
    server = Server(app, models)
    # Late, so that clients are refused, and not left waiting, until somebody is there to answer.
    listen(bound)
    with contextlib.suppress(SystemExit):  # uvicorn's own code for a failed start means something else here
        server.run(sockets=[bound])
    return 0 if models.is_loaded else NEVER_READY


if __name__ == "__main__":
    main()
