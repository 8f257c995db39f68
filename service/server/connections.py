"""Connections that keep nobody waiting: bounds on time, bytes and number where uvicorn has none.

uvicorn closes a connection that is idle between two requests. It waits for ever for a request's head, for a client to
take its answer, and lets both a head and the number of connections grow without end.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.errors import error_document
from service.middleware.request_log import new_request_id

MAX_CONNECTIONS = 2048
MAX_HEAD = 64 * 2**10  # bytes before a body, or behind it
MAX_FIELDS = 100  # of a request: headers and trailers together
MAX_PIECES = 1000  # chunks or segments of a body that may be of any size
# Bytes of each on average, where there are more: to parse one takes as long as to copy thousands.
SMALLEST_PIECE = 16
MAX_PIPELINED = 100  # requests sent on a connection before the answers to those before them
_FRAMING = (b"content-length", b"transfer-encoding")  # fields that say where a body ends
_TOO_LARGE = (431, "head_too_large", f"A request's head is at most {MAX_HEAD} bytes and {MAX_FIELDS} fields.")
_TOO_SMALL = (
    400,
    "chunks_too_small",
    f"The body came in pieces of less than {SMALLEST_PIECE} bytes; send it in larger ones.",
)
LAST_CALL = 0.5  # seconds for a connection without a request when the server stops
LINGER = 2.0  # seconds for a client to read its answer and stop sending, where it is still sending its body
LINGER_BYTES = 32 * 2**20  # most that is read of it meanwhile: two of the largest bodies by default


class Refusal(NamedTuple):
    """An answer that a connection gave by itself, to what never became a request."""

    request_id: str
    status: int
    code: str
    client: str | None  # address
    seconds: float | None  # since its head was waited for


class _Refused(Exception):
    """A head or a body that is not taken: the status, the code and the message of the answer."""


class Connections(ServerState):
    """All open connections.

    Args:
        timeout: seconds for the head of a request, and again for taking its answer.
        keep_alive: seconds that a connection is kept between two requests.
        limit: most connections; a new one beyond it takes the place of the one that has been silent for longest.
        refused: told of every `Refusal`.
    """

    def __init__(
        self, timeout: float, keep_alive: float, limit: int, refused: Callable[[Refusal], None]
    ) -> None:
        super().__init__()
        self.timeout, self.keep_alive = timeout, keep_alive
        self.limit, self.refused = limit, refused
        self.is_draining = False  # every answer says `Connection: close`

    def drain(self) -> None:
        """From now on a connection is good for one more answer."""
        self.is_draining = True
        for connection in self._ours():
            if connection.cycle is not None and not connection.cycle.response_started:
                connection.cycle.keep_alive = False

    def sweep(self, now: float) -> None:
        """Close the connections that keep us waiting for too long; ``now`` is the time of the event loop."""
        for connection in self._ours():
            connection.end_if_late(now)

    def make_room(self, newest: Connection) -> None:
        """Close one connection where there are too many."""
        if len(self.connections) > self.limit:
            silent = [c for c in self._ours() if c.waiting_since is not None and not c.transport.is_closing()]
            min(silent, key=lambda c: c.waiting_since or 0.0, default=newest).transport.abort()

    def _ours(self) -> list[Connection]:
        return [connection for connection in self.connections if isinstance(connection, Connection)]


class Connection(HttpToolsProtocol):
    """One connection.

    ``waiting_since``: when a request's head began, or when we began to wait for one; None while there is a request.
    """

    server_state: Connections
    url = b""  # of the request that is being read, as far as it has come
    waiting_since: float | None = None
    _unread_since: float | None = None
    _fields = 0  # of the request that is being read
    _head_size = 0  # bytes of what is named and kept of its head, or of its trailers
    _pieces = 0  # of the body that is being read
    _body_size = 0  # bytes of it
    _has_begun = False  # whether a head is being read
    _made_progress = False  # whether a head ended or a body grew since this was set
    _stalled = 0  # bytes since then
    _is_repeating = False  # whether the parser is given a head for the second time, of which nobody is told
    _may_keep_alive = False  # whether the request that is being read leaves the connection open
    _is_lingering = False  # whether the last answer is written, and what still comes is thrown away
    _thrown_away = 0  # bytes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:  # on an IPv6 socket, an IPv4 address comes as ::ffff:127.0.0.1
            self.client = (self.client[0].removeprefix("::ffff:"), *self.client[1:])
        self._unanswered: deque[RequestResponseCycle] = deque()
        self.waiting_since = self.loop.time()
        self.server_state.make_room(self)

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            self._throw_away(data)
            return
        self._made_progress = False
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _Refused):
                self._refuse(*error.__context__.args)
            else:
                self.send_400_response("Invalid HTTP request received.")
        # Neither the end of a head nor of a body: a head or a trailer that goes on, or the size of a chunk that does.
        self._stalled = 0 if self._made_progress else self._stalled + len(data)
        if (self._stalled > MAX_HEAD or self._is_too_large) and not self.transport.is_closing():
            self._refuse(*_TOO_LARGE)
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def _parse(self, data: bytes) -> None:
        """Feed the parser, which stops behind the head of a request that asks for another protocol (Upgrade).

        We speak no other protocol, so such a request counts as if it had not asked (RFC 9110, 7.8). Its body must be
        read as its body: otherwise its bytes would be taken for the next request. So the parser is given a head of the
        same framing that does not ask, and goes on from there. Raises HttpParserError.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stopped:
                data = data[stopped.args[0] :]
                framing = [b"%s: %s\r\n" % header for header in self.headers if header[0] in _FRAMING]
                self._is_repeating = True
                self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
                self._is_repeating = False
            else:
                return

    @property
    def _is_too_large(self) -> bool:
        return self._fields > MAX_FIELDS or self._head_size > MAX_HEAD

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._leave_unanswered()  # uvicorn tells only the last

    def _leave_unanswered(self) -> None:
        """Nobody will read any further answer: whoever is at one learns it, and what it says is thrown away."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def on_message_begin(self) -> None:
        if self._is_repeating:
            return
        self._fields = self._head_size = self._pieces = self._body_size = 0
        self._has_begun = True
        if self.waiting_since is not None:
            self.waiting_since = self.loop.time()  # however long the connection was idle before
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_repeating:
            self._head_size += len(url)
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_repeating:
            return
        self._fields += 1
        self._head_size += len(name) + len(value) + 4  # ": " and the end of the line
        if not self._is_too_large:  # the others are not kept, not even until the refusal
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_repeating:
            return
        self._require_sound_head()
        super().on_headers_complete()
        self._made_progress = True
        self._has_begun, self._head_size = False, 0
        self.waiting_since = None
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        self._unanswered.append(self.cycle)
        self.cycle.transport = _AnswerTransport(self, self.cycle)  # type: ignore[assignment]  # all that it uses
        # An answer that is given before the whole body is here says `Connection: close`, and the connection ends behind
        # it. Otherwise what still comes would be parsed for nothing, for as long as the client likes to send.
        self._may_keep_alive, self.cycle.keep_alive = self.cycle.keep_alive, False

    def _require_sound_head(self) -> None:
        """Raise _Refused for a head that is too large, or that others on the way may have read otherwise than we do."""
        if self._is_too_large:
            raise _Refused(*_TOO_LARGE)
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise _Refused(400, "malformed_request", f"A request has one Host header, not {hosts}.")
        codings = b",".join(value for name, value in self.headers if name == b"transfer-encoding")
        # Without chunked at the end the parser refuses it by itself.
        if b"," in codings and codings.lower().endswith(b"chunked"):
            message = "No Transfer-Encoding but chunked is taken."
            raise _Refused(501, "unsupported_transfer_encoding", message)

    def on_body(self, body: bytes) -> None:
        self._made_progress = True
        self._pieces += 1
        self._body_size += len(body)
        if self._pieces > MAX_PIECES and self._body_size < self._pieces * SMALLEST_PIECE:
            raise _Refused(*_TOO_SMALL)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # its body, if any, comes behind the repeated head
            return
        super().on_message_complete()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._may_keep_alive and not self.server_state.is_draining

    def on_response_complete(self) -> None:
        if self._is_lingering:
            return
        super().on_response_complete()
        self._unread_since = None
        if self.pipeline:
            self.flow.pause_reading()  # uvicorn reads on after every answer, and keeps all that comes
        if self.cycle.response_complete:  # no other request was sent behind it
            self.waiting_since = self.loop.time()

    def end_if_late(self, now: float) -> None:
        """Close the connection where the head of a request, or the client that an answer is for, is late.

        Idle or trickling makes no difference. (Bodies have the deadline of their request, `AdmissionControl.admitted`.)
        """
        timeout = self.server_state.timeout
        if self.transport.get_write_buffer_size() == 0:
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since > timeout:
            self.transport.abort()
            return
        if self._is_lingering:
            return
        is_between = self.cycle is not None and not self._has_begun
        timeout = self.server_state.keep_alive if is_between else timeout
        if self.waiting_since is None or now - self.waiting_since <= timeout or self.transport.is_closing():
            return
        if self._has_begun:
            self._refuse(408, "request_timeout", f"The head of the request took more than {timeout:g} s.")
        else:
            self.transport.close()

    def shutdown(self) -> None:
        """Called when the server stops: after the request in progress, or now.

        A connection that has only just come gets a moment for its request, which may be on its way.
        """
        if self._is_lingering:
            return
        if self.cycle is None:
            self.loop.call_later(LAST_CALL, self._close_if_silent)
        else:
            super().shutdown()

    def linger(self) -> None:
        """Send no more, and close when the client does; in `LINGER` seconds in any case.

        To close while a body is still coming resets the connection: the client, busy sending, would never read why it
        was refused (RFC 9112, 9.6).
        """
        self._is_lingering = True
        self._leave_unanswered()
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER, self.transport.close)

    def _throw_away(self, data: bytes) -> None:
        """Nor read any more where that was too much; the system then holds the client up until the connection ends."""
        self._thrown_away += len(data)
        if self._thrown_away > LINGER_BYTES:
            self.flow.pause_reading()

    def _close_if_silent(self) -> None:
        if self.waiting_since is not None:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an error like all others."""
        self._refuse(400, "malformed_request", msg)

    def _refuse(self, status: int, code: str, message: str) -> None:
        request_id = new_request_id()
        path = self.url.partition(b"?")[0].decode("latin-1")
        body = json.dumps(error_document(path, code, message)).encode()
        lines = {
            "content-type": "application/json",
            "content-length": len(body),
            "connection": "close",
            "x-request-id": request_id,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.transport.write(STATUS_LINE[status] + head.encode() + b"\r\n" + body)
        self.linger()
        waited = None if self.waiting_since is None else round(self.loop.time() - self.waiting_since, 5)
        client = None if self.client is None else self.client[0]
        self.server_state.refused(Refusal(request_id, status, code, client, waited))


class _AnswerTransport:
    """What uvicorn writes one answer to, and closes behind it where the connection ends."""

    def __init__(self, connection: Connection, cycle: RequestResponseCycle) -> None:
        self._connection, self._cycle = connection, cycle

    def write(self, data: bytes) -> None:
        self._connection.transport.write(data)

    def is_closing(self) -> bool:
        return self._connection.transport.is_closing()

    def close(self) -> None:
        """A whole answer may be given before its request is here: what the client sends then is waited for."""
        if self._cycle.response_complete and self._cycle.more_body and not self.is_closing():
            self._connection.linger()
        else:
            self._connection.transport.close()
