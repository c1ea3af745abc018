"""Metrics of HTTP requests, named and labelled as prometheus-fastapi-instrumentator's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from starlette.datastructures import Headers
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fjx.serving.routing import route_of

NOT_COUNTED = frozenset({"/health", "/load", "/metrics", "/ping", "/ready", "/version"})
"""Who asks for these does so all the time."""
FINE_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5,
                7.5, 10, 30, 60)  # fmt: skip
"""Bucket bounds of the durations of all requests."""
COARSE_SECONDS = (0.1, 0.5, 1)
"""Bucket bounds of the durations by path and method."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class HttpMetrics:
    """Counts requests by path, method and status, their bytes and their seconds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "HTTP requests by method, status and path.",
            ["method", "status", "handler"],
            registry=registry,
        )
        self._request_bytes = Summary(
            "http_request_size_bytes",
            "Length of request bodies, as announced.",
            ["handler"],
            registry=registry,
        )
        self._response_bytes = Summary(
            "http_response_size_bytes",
            "Length of response bodies.",
            ["handler"],
            registry=registry,
        )
        self._seconds = Histogram(
            "http_request_duration_highr_seconds",
            "From a request to the end of its answer.",
            buckets=FINE_SECONDS,
            registry=registry,
        )
        self._seconds_by_path = Histogram(
            "http_request_duration_seconds",
            "The same by method and path.",
            ["method", "handler"],
            buckets=COARSE_SECONDS,
            registry=registry,
        )

    def observe(
        self,
        method: str,
        path: str,
        status: int,
        request_bytes: int,
        response_bytes: int,
        seconds: float,
    ) -> None:
        """Count one request that has been answered."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, f"{status // 100}xx", path).inc()
        self._request_bytes.labels(path).observe(request_bytes)
        self._response_bytes.labels(path).observe(response_bytes)
        self._seconds.observe(seconds)
        self._seconds_by_path.labels(method, path).observe(seconds)


class CountRequests:
    """Measures every request whose answer has begun; the label of unknown paths is ``none``."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Go on, and measure it."""
        if scope["type"] != "http" or scope["path"] in NOT_COUNTED:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status: int | None = None
        sent = 0

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted_send)
        except Exception:
            status = status or HTTPStatus.INTERNAL_SERVER_ERROR
            raise
        finally:
            if status is not None:
                self._observe(scope, status, sent, time.perf_counter() - started)

    def _observe(self, scope: Scope, status: int, sent: int, seconds: float) -> None:
        length = Headers(scope=scope).get("content-length", "")
        self._metrics.observe(
            method=scope["method"],
            path=route_of(self._routes, scope) or "none",
            status=status,
            request_bytes=int(length) if length.isdecimal() and len(length) < 18 else 0,
            response_bytes=sent,
            seconds=seconds,
        )
