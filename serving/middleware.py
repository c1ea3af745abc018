"""ASGI middleware around the routes: keys, body size, and what happens when a client leaves."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fjx.serving.errors import ApiError
from fjx.serving.json_size import json_weight
from fjx.serving.state import RequestsInFlight
from fjx.serving.unicode import check_unicode
from fjx.serving.workers import off_loop
from fjx.wording import shortened

OPEN_PATHS = frozenset({"/health", "/ping", "/ready", "/load", "/version", "/metrics"})
"""What orchestrators and monitoring read without the API key."""

PLAN_PATH = "/v1/plan"
"""What only the admin key changes, where there is one."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_DISCARD_SECONDS = 5.0
_WEIGHED_AT_ONCE = 32 * 1024
"""Bytes of JSON whose weight is known in less than a millisecond."""
_SEND_SIZE = 64 * 1024
"""Bytes of an answer that are handed over at a time: so much waits in memory for a slow client, and
its time begins anew with each."""


class RequireKey:
    """Answers 401 to requests without the key that they need, before their body is read.

    The admin key opens everything; the API key opens all but what changes the plan, and that, too,
    where there is no admin key.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, admin_key: str | None) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._admin_key = None if admin_key is None else admin_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key, then go on."""
        if scope["type"] == "http" and (error := self._refusal(scope)) is not None:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if scope["path"] in OPEN_PATHS:
            return None
        # By its beginning: the router also takes a path with a line break at its end.
        changes_plan = scope["path"].startswith(PLAN_PATH) and scope["method"] not in _READING
        keys = [self._admin_key]
        if changes_plan and self._admin_key is not None:
            name, code = "admin", "invalid_admin_key"
        elif self._api_key is not None:
            name, code = "API", "invalid_api_key"
            keys.append(self._api_key)
        else:
            return None
        given = _given_keys(scope)
        if any(hmac.compare_digest(a, b) for a in given for b in keys if b is not None):
            return None
        return ApiError(
            HTTPStatus.UNAUTHORIZED,
            f"incorrect or missing {name} key; send it as 'Authorization: Bearer KEY' or "
            "'X-Api-Key: KEY'",
            code=code,
            headers={"WWW-Authenticate": "Bearer"},
        )


def _given_keys(scope: Scope) -> list[bytes]:
    """The keys that a request carries, in either header."""
    keys = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            keys.append(value)
        elif name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                keys.append(key.strip())
    return keys


class RequestLifetime:
    """Reads a request's body up to its limits, and cancels its handler when the client leaves.

    What a body's JSON holds is limited because reading it stops everything else. The handler runs
    in a task of its own. Cancelling it closes the engine's streams, which aborts the requests
    behind them: streaming or not, wherever the handler stands.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        max_body_values: int,
        body_timeout: float,
        in_flight: RequestsInFlight,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_body_values = max_body_values
        self._body_timeout = body_timeout
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then run the handler for as long as the client stays."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body_in_time(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is not None:
            with self._in_flight.one():
                await self._run(scope, body, receive, send)

    async def _body_in_time(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None if the client left; raises a 408, 413 or 415."""
        try:
            async with asyncio.timeout(self._body_timeout):
                body = await self._read_body(scope, receive)
        except TimeoutError:
            raise ApiError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the request body did not come within {self._body_timeout:g} s",
                code="body_timeout",
                headers={"Connection": "close"},
            ) from None
        if body:
            _check_encoding(scope)
        limit = self._max_body_values
        if (
            body
            and await off_loop(len(body), lambda: _weight(body, limit), inline=_WEIGHED_AT_ONCE)
            > limit
        ):
            raise ApiError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request body holds more than {limit} JSON values (a string counts four, a "
                "list, an object and a name in one twenty), the limit of this server",
                code="request_too_large",
            )
        return body

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None if the client left; raises a 413."""
        limit = self._max_body_bytes
        length = Headers(scope=scope).get("content-length", "")
        announced = int(length) if length.isdecimal() else 0
        body, more = bytearray(), True
        while more and max(announced, len(body)) <= limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if max(announced, len(body)) <= limit:
            return bytes(body)
        if more:
            await _discard_body(receive)
        raise ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the request body is larger than {limit} bytes, the limit of this server",
            code="request_too_large",
        )

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        answered = False

        async def replay() -> Message:
            if unread:
                return unread.pop()
            await asyncio.Event().wait()  # a handler never learns of the end: it is cancelled
            raise AssertionError("unreachable")

        async def watched_send(message: MutableMapping[str, Any]) -> None:
            nonlocal answered
            if message["type"] != "http.response.body":
                await send(message)
                return
            body, more = message.get("body", b""), message.get("more_body", False)
            answered = not more
            for begin in range(0, max(len(body), 1), _SEND_SIZE):
                end = begin + _SEND_SIZE
                rest = more or end < len(body)
                await send({**message, "body": body[begin:end], "more_body": rest})

        handler = asyncio.ensure_future(self._app(scope, replay, watched_send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({handler, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if handler.done() or answered:
                await handler
        finally:
            handler.cancel()
            leaving.cancel()
            await asyncio.gather(handler, leaving, return_exceptions=True)


def _check_encoding(scope: Scope) -> None:
    """Raise a 415 where a body is compressed: it is limited as it is sent, and read as it is."""
    codings = ",".join(Headers(scope=scope).getlist("content-encoding")).split(",")
    names = [name.strip() for name in codings]
    wrong = [name for name in names if name.lower() not in ("", "identity")]
    if wrong:
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the request body must not be compressed or otherwise encoded, but Content-Encoding "
            f"is {shortened(', '.join(wrong))}; send it as it is, without this header",
            code="unsupported_content_encoding",
            headers={"Accept-Encoding": "identity"},
        )


def _weight(body: bytes, limit: int) -> int:
    """See ``json_weight``; raises a 400 where the text is not valid Unicode."""
    check_unicode(body)
    return json_weight(body, limit)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _discard_body(receive: Receive) -> None:
    """Read on for a while: a client that is still sending would not see the answer."""
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
