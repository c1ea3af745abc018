"""The log of requests that were refused: status, reason and client, and no flood of lines."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger("fjx.server")

_LONGEST_REASON = 300
_PROBES = frozenset({"/health", "/ping", "/ready"})
"""Asked again and again by whoever waits for the server: their 503 is an answer, not a refusal."""


class LineLimit:
    """Lets ``lines`` lines through in each interval of ``seconds``, and counts the others."""

    def __init__(self, lines: int = 20, seconds: float = 10.0) -> None:
        self._lines, self._seconds = lines, seconds
        self._until = 0.0
        self._count = 0

    def allows(self, now: float) -> tuple[bool, int]:
        """Whether a line may be written now, and how many were not since the last interval's end.

        Args:
            now: in seconds, never smaller than before.
        """
        kept_back = 0
        if now >= self._until:
            kept_back = max(self._count - self._lines, 0)
            self._until, self._count = now + self._seconds, 0
        self._count += 1
        return self._count <= self._lines, kept_back


class RefusalLog:
    """Writes one line for each refusal, as long as they are few."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._limit = LineLimit()

    def log(self, client: tuple[str, int] | None, what: str) -> None:
        """Log what happened to a client's request."""
        if not self._enabled:
            return
        allowed, kept_back = self._limit.allows(time.monotonic())
        if kept_back:
            logger.info("%d more refusals were not logged", kept_back)
        if allowed:
            address = "an unknown client" if client is None else f"{client[0]}:{client[1]}"
            logger.info("%s: %s", address, _on_one_line(what))


class LogRefusals:
    """ASGI middleware: logs every answer with an error status, with its own words."""

    def __init__(self, app: ASGIApp, log: RefusalLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and look at what is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def watched_send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status >= 400 and not (status == 503 and scope["path"] in _PROBES):
                path = scope.get("raw_path", b"").decode("ascii", "replace")
                what = f"{scope['method']} {path} refused with {status}"
                reason = _reason(message.get("body", b""))
                self._log.log(scope.get("client"), f"{what}: {reason}" if reason else what)
                status = 0
            await send(message)

        await self._app(scope, receive, watched_send)


def _reason(body: bytes) -> str:
    """The message of an error response; empty where it has none."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _on_one_line(text: str) -> str:
    """What a client has sent must not look like lines of this log."""
    if len(text) > _LONGEST_REASON:
        text = text[: _LONGEST_REASON - 3] + "..."
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
