"""Reading a request's JSON into what its route takes, while the event loop goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from fjx.serving.errors import ApiError, InvalidBodyError, as_api_error
from fjx.serving.workers import off_loop

_READ_AT_ONCE = 32 * 1024
"""Bytes of JSON that are read and checked within some milliseconds."""


class BodyRoute(APIRoute):
    """A route whose body, where it is large, is parsed and checked in a thread.

    FastAPI does both in the event loop. What it finds is the same.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        answer, field = super().get_route_handler(), self.body_field
        if field is None:
            return answer
        kind: Any = field.field_info.annotation
        adapter: TypeAdapter[Any] = TypeAdapter(kind)

        async def handle(request: Request) -> Response:
            if len(await request.body()) > _READ_AT_ONCE:
                request = _LargeBody(request, adapter)
            return await answer(request)

        return handle


class _LargeBody(Request):
    """A request whose JSON comes checked: FastAPI takes a model's instance as it is."""

    def __init__(self, request: Request, adapter: TypeAdapter[Any]) -> None:
        super().__init__(request.scope, request.receive)
        self._read = request.body
        self._adapter = adapter

    async def body(self) -> bytes:
        """The bytes, which have been read before."""
        return await self._read()

    async def json(self) -> Any:
        """The body as its route takes it.

        Raises:
            InvalidBodyError: it is JSON, but not what the route takes.
        """
        body = await self.body()
        checked = await off_loop(len(body), lambda: self._checked(body))
        if isinstance(checked, ApiError):
            raise InvalidBodyError(checked)
        return checked

    def _checked(self, body: bytes) -> Any:
        # An error is returned: one that is raised keeps what it comes from, and Python's garbage
        # collector looks at all of that while everything waits.
        value = read_json(body)
        if not isinstance(value, dict):
            return value
        try:
            return self._adapter.validate_python(value)
        except ApiError as error:
            return error
        except ValidationError as error:
            found = error.errors(include_url=False)
            found = [{**each, "loc": ("body", *each["loc"])} for each in found]
            return as_api_error(RequestValidationError(found))


def read_json(body: bytes) -> Any:
    """What a JSON text says; other threads get their turn after each of its numbers."""
    # Python's own functions do the same faster, but for all numbers in one go.
    return json.loads(body, parse_float=_float, parse_int=_int)


def _float(text: str) -> float:
    return float(text)


def _int(text: str) -> int:
    return int(text)
