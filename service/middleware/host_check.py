"""An ASGI middleware that answers to the server's own names only.

A web page may give its own name the address 127.0.0.1 (DNS rebinding), and the browser then lets it read what a local
server answers. Its requests still carry the page's name in the Host header.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from starlette.types import ASGIApp, Receive, Scope, Send

from ducat_serve.errors import UsageError
from service.errors import APIError
from service.middleware.request_log import is_probe
from service.settings import Settings

ANY = "*"
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
# A Host header: a name, or an IPv6 address in brackets, and perhaps a port.
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]+))(?::\d*)?")


class HostCheck:
    """Answers 421 where the Host header is neither a loopback name nor one of ``names``, in lower case.

    Probes are answered under any name: what probes asks for an address, and learns nothing but yes or no.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_probe(scope) and not self._is_ours(scope):
            message = (
                "The Host header of this request does not name this server (ducat serve --allowed-hosts)."
            )
            await APIError(421, "unknown_host", message).response(scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        hosts = [host_name(value.decode("latin-1")) for name, value in scope["headers"] if name == b"host"]
        return bool(hosts) and all(
            host is not None and (host in self.names or is_loopback(host)) for host in hosts
        )


def names_to_check(settings: Settings) -> frozenset[str] | None:
    """The names besides those of the loopback that a server with these settings answers to; None: to all.

    Without allowed hosts only a server that is on a loopback address and asks for no key needs the check. What other
    machines reach, a page need not rebind a name for; and no page knows a key.

    Raises UsageError where an allowed host is no name.
    """
    allowed = set() if settings.allowed_hosts is None else _parse(settings.allowed_hosts)
    if ANY in allowed:
        return None
    host = None if settings.host is None else settings.host.lower()
    if not allowed and (host is None or settings.has_keys or not is_loopback(host, resolve=True)):
        return None
    return frozenset(allowed | ({host} if host else set()))


def host_name(header: str) -> str | None:
    """The name or address in a Host header, in lower case and without port and brackets; None where there is none."""
    match = _HOST.fullmatch(header.strip().lower())
    return None if match is None else (match["address"] or match["name"]).removesuffix(".")


def is_loopback(host: str, *, resolve: bool = False) -> bool:
    """Whether a name or address is this machine's own; with ``resolve``, also a name that stands for such an address.

    No name from a request may be resolved: a rebound one would be found to be ours.
    """
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return resolve and _resolves_to_loopback(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _resolves_to_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(is_loopback(str(address[0])) for *_, address in found)


def _parse(text: str) -> set[str]:
    names = {name.strip().lower() for name in text.split(",")} - {""}
    if not names:
        raise UsageError("The allowed hosts name no host.", "ducat serve MODEL --allowed-hosts ducat.example")
    for name in names - {ANY}:
        if not _NAME.fullmatch(name) and not _is_address(name):
            raise UsageError(
                f"'{name}' is not the name of a host.",
                "leave out https://, port and path: --allowed-hosts ducat.example",
            )
    return names


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
