"""Server-sent events: the answer of a streaming request."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fjx.serving.errors import as_api_error

logger = logging.getLogger("fjx.server")


class Events:
    """Sends events; the first one brings the status and headers with it."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._one_at_a_time = asyncio.Lock()
        self.started = False

    async def emit(self, data: str) -> None:
        """Send one event; returns when the connection can take more."""
        async with self._one_at_a_time:
            if not self.started:
                self.started = True
                await self._send(
                    {"type": "http.response.start", "status": 200, "headers": self._headers}
                )
            await self._send_body(f"data: {data}\n\n", more=True)

    async def close(self) -> None:
        """Send the last event, [DONE], and end the answer."""
        await self.emit("[DONE]")
        await self._send_body("", more=False)

    async def _send_body(self, text: str, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": more})


class EventStream(Response):
    """A response whose events come from ``produce``.

    Nothing is sent before the first event, so that a request that fails until then gets an ordinary
    error response with its status. A later failure becomes an event of its own: {"error": ...}.
    """

    media_type = "text/event-stream"

    def __init__(self, produce: Callable[[Events], Awaitable[None]]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._produce = produce

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        events = Events(send, self.raw_headers)
        try:
            await self._produce(events)
        except Exception as error:
            if not events.started:
                raise
            api_error = as_api_error(error)
            if api_error.status == 500:
                logger.exception("a stream failed")
            await events.emit(json.dumps(api_error.body))
        await events.close()
