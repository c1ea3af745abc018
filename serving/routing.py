"""What every path answers besides its own methods: HEAD, OPTIONS, and what is not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus

from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fjx.serving.errors import ApiError, nearest
from fjx.wording import shortened


class HeadAndOptions:
    """Answers HEAD as GET without its body, and OPTIONS with the methods that a path has."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or go on."""
        if scope["type"] != "http" or scope["method"] not in ("HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        methods = allowed(self._routes, scope)
        if scope["method"] == "OPTIONS" and methods:
            response = Response(status_code=HTTPStatus.NO_CONTENT, headers=_allow(methods))
            await response(scope, receive, send)
        elif "GET" in methods:
            await self._app({**scope, "method": "GET"}, receive, _without_body(send))
        else:
            await self._app(scope, receive, send)


def route_of(routes: Sequence[BaseRoute], scope: Scope) -> str | None:
    """The path of a request as its route has it, such as ``/v1/models/{model}``."""
    return next((route.path_format for route in _matching(routes, scope)), None)


def allowed(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """The methods that the path of a request takes."""
    methods = {method for route in _matching(routes, scope) for method in route.methods or ()}
    if not methods:
        return []
    return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))


def not_found(routes: Sequence[BaseRoute], scope: Scope) -> ApiError:
    """A 404 that says what there is."""
    paths = sorted({route.path_format for route in routes if isinstance(route, Route)})
    near = nearest(scope["path"], paths)
    hint = f"; did you mean {near}? There are" if near else "; there are"
    return ApiError(
        HTTPStatus.NOT_FOUND,
        f"there is no {shortened(scope['path'])!r} here{hint} {', '.join(paths)}",
        code="path_not_found",
    )


def method_not_allowed(routes: Sequence[BaseRoute], scope: Scope) -> ApiError:
    """A 405 that says what a path takes."""
    methods = allowed(routes, scope)
    return ApiError(
        HTTPStatus.METHOD_NOT_ALLOWED,
        f"{shortened(scope['path'])} takes {', '.join(methods)}, not {shortened(scope['method'])}",
        code="method_not_allowed",
        headers=_allow(methods),
    )


def _matching(routes: Sequence[BaseRoute], scope: Scope) -> Iterator[Route]:
    for route in routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            yield route


def _allow(methods: Sequence[str]) -> dict[str, str]:
    return {"Allow": ", ".join(methods)}


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head
