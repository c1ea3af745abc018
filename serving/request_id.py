"""Every request has an id: the client's own X-Request-Id, or a new one; the answer bears it."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_USABLE = re.compile(r"[!-~]{1,128}")
"""What goes into logs and headers as it is."""


class RequestId:
    """Gives each request its id, and its answer the header; an unusable id is replaced."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the request, then go on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        own = given if _USABLE.fullmatch(given) else None
        shown = own or uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=shown, request_id_is_own=own is not None)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = shown
            await send(message)

        await self._app(scope, receive, send_named)


def request_id(request: Request, in_body: str | None) -> str:
    """A request's id: that of its header, or of its body, or a new one."""
    if in_body is not None and not request.state.request_id_is_own:
        return in_body
    shown: str = request.state.request_id
    return shown


def engine_id(answer_id: str) -> str:
    """An id for the engine, to which a client may come twice with the same one."""
    return f"{answer_id}-{uuid.uuid4().hex[:8]}"
