"""What a connection may cost: how many there are, and how long each may take over its headers, an
answer, or nothing at all.

uvicorn itself only ends connections that are idle after an answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from fjx.serving.errors import ApiError, unavailable
from fjx.serving.refusals import RefusalLog

logger = logging.getLogger("fjx.server")

_OTHER_FILES = 256
"""Open files that are no connections."""

_STUCK_SECONDS = 1.0
"""When the server stops, it does not wait for a client that has read nothing for this long."""

MAX_HEADER_BYTES = 64 * 1024
"""Longest request line and headers, together."""
_UPGRADE = re.compile(rb"(\A|\r\n)upgrade:[ \t]*h2c[ \t]*(?=\r\n|\Z)", re.IGNORECASE)

MAX_PIPELINED = 16
"""Most requests that wait in a connection for the answers of those before them."""


def allowed_connections(wanted: int) -> int:
    """The number of connections that this process may open, at most ``wanted``.

    Raises its own limit of open files towards the one that the system sets, where it must.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == needed:
        return wanted
    allowed = max(soft - _OTHER_FILES, soft // 2)
    logger.warning(
        "at most %d connections instead of %d: the system lets this process open %d files "
        "(ulimit -n)",
        allowed,
        wanted,
        soft,
    )
    return allowed


@dataclass(eq=False)
class Connections:
    """The open connections of a server, and what they are held to."""

    max_connections: int
    header_timeout: float
    """Seconds for a request's headers, from a connection's beginning or their first byte on."""
    send_timeout: float
    """Seconds within which a client must take some of its answer."""
    refusals: RefusalLog
    idle: dict[GuardedConnection, None] = field(default_factory=dict)
    """Connections without a request, the one that has been idle for longest first."""

    def make_room(self) -> bool:
        """Close the connection that has been idle for longest; False: none is."""
        longest = next(iter(self.idle), None)
        if longest is None:
            return False
        del self.idle[longest]
        longest.transport.abort()
        return True

    def sweep(self, connections: list[Any]) -> None:
        """End those that are over their time; to be called about once a second."""
        now = time.monotonic()
        for connection in connections:
            if isinstance(connection, GuardedConnection):
                connection.check(now)


class GuardedConnection(HttpToolsProtocol):
    """uvicorn's connection with limits."""

    def __init__(self, *args: Any, guard: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._guard = guard
        self._awaited_since: float | None = None
        """Since when the next request's headers have been awaited, seen by `check`; None: they have
        come, or uvicorn's own time for idle connections runs."""
        self._stuck_since: float | None = None
        """When the client stopped reading its answer fast enough; None: it reads."""
        self._closing_since: float | None = None
        self._in_headers = False
        self._header_bytes = 0
        self._refusal: ApiError | None = None
        """Nothing more is read; the client hears of this behind the answers under way."""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let the connection in, in an idle one's place if it must be."""
        full = len(self.connections) >= self._guard.max_connections
        refused = full and not self._guard.make_room()
        super().connection_made(transport)
        if refused:
            message = f"all {self._guard.max_connections} connections are in use; try again shortly"
            self._refuse(unavailable(message, "too_many_connections"))
            return
        self._guard.idle[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._guard.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless it is over."""
        if self.transport.is_closing() or self._refusal is not None:
            return
        in_headers = self._in_headers
        if in_headers or self._answered:
            data = _without_upgrade(data)
        super().data_received(data)
        if in_headers and self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(_headers_too_large())

    def pause_writing(self) -> None:
        """The client takes its answer more slowly than it is made."""
        super().pause_writing()
        self._stuck_since = time.monotonic()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._stuck_since = None

    # What the parser and uvicorn call.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_headers, self._header_bytes = True, 0

    def on_headers_complete(self) -> None:
        """A request begins."""
        self._in_headers, self._awaited_since = False, None
        self._guard.idle.pop(self, None)
        if self.transport.is_closing() or self._refusal is not None:
            return
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEADER_BYTES:
            self._refuse(_headers_too_large())
        elif len(self.pipeline) >= MAX_PIPELINED:
            message = f"more than {MAX_PIPELINED} requests wait in this connection; use several"
            self._refuse(ApiError(HTTPStatus.TOO_MANY_REQUESTS, message))
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of a request's body."""
        if not (self.transport.is_closing() or self._refusal is not None):
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if not (self.transport.is_closing() or self._refusal is not None):
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer has been written."""
        super().on_response_complete()
        if self._answered and not self.transport.is_closing():
            if self._refusal is not None:
                self._say_and_close(self._refusal)
            else:
                self._guard.idle[self] = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(ApiError(HTTPStatus.BAD_REQUEST, msg.rstrip(".")))

    def shutdown(self) -> None:
        """The server stops: a request that has not come whole will not be served any more, and an
        answer that nobody takes is not waited for."""
        stuck = self._stuck_since
        if stuck is not None and time.monotonic() - stuck > _STUCK_SECONDS:
            self.transport.abort()
        elif self.cycle is not None and self.cycle.more_body and not self.cycle.response_started:
            self.transport.close()
        else:
            super().shutdown()

    def check(self, now: float) -> None:
        """End the connection if it is over its time."""

        def over(since: float | None, limit: float) -> bool:
            return since is not None and now - since > limit

        if self.transport.is_closing():
            self._closing_since = now if self._closing_since is None else self._closing_since
            if over(self._closing_since, self._guard.send_timeout):
                self.transport.abort()
        elif over(self._stuck_since, self._guard.send_timeout):
            self._guard.refusals.log(self.client, "a client does not take its answer: closed")
            self.transport.abort()
        elif self._answered and self.timeout_keep_alive_task is None:
            self._awaited_since = now if self._awaited_since is None else self._awaited_since
            if over(self._awaited_since, self._guard.header_timeout):
                seconds = f"{self._guard.header_timeout:g} s"
                message = f"a request's headers did not come within {seconds}"
                self._refuse(ApiError(HTTPStatus.REQUEST_TIMEOUT, message))

    @property
    def _answered(self) -> bool:
        """Whether no request is under way whose headers have come."""
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Answer what never becomes a request, and close.

        Where whole requests are under way, their answers come first: the client would take this
        for the answer to one of them."""
        self._guard.idle.pop(self, None)
        self._guard.refusals.log(self.client, f"refused with {error.status}: {error}")
        if not self._answered:
            if not self.cycle.more_body:
                self._refusal = error
                return
            self.cycle.disconnected = True  # nothing is written behind this
        self._say_and_close(error)

    def _say_and_close(self, error: ApiError) -> None:
        body = json.dumps(error.body).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **error.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """Headers that do not ask for HTTP/2.

    Java's client asks for it in its first request, and a server may go on in HTTP/1.1. The parser
    would take the body for what follows in the other protocol.
    """
    if b"h2c" not in data:
        return data
    headers, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(rb"\1X-Not-Upgraded: h2c", headers) + end + rest


def _headers_too_large() -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        f"the request line and headers are longer than {MAX_HEADER_BYTES} bytes",
    )
