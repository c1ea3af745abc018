"""Errors as the OpenAI API shapes them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fjx import EngineDeadError, QueueFullError, RequestError
from fjx.wording import shortened

_SHOULD = re.compile(r"\w+ should (?P<what>(be|have) .*?)( after validation, not .*)?")
"""Pydantic's sentence on a value, such as "List should have at least 1 item after validation"."""
_LONGEST_NAME = 64
_OTHER_ENDPOINTS = {
    "prompt": ("messages", "/v1/chat/completions"),
    "messages": ("prompt", "/v1/completions"),
}
"""A required field to the one that is given instead where the endpoint is the wrong one."""

_LONGEST_MESSAGE = 1000
_LONGEST_PARAM = 200
_LONGEST_VALUE = 60
"""Characters of what a client has sent that it is shown again."""


class ApiError(Exception):
    """An error response: the HTTP status and the fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(shortened(message, _LONGEST_MESSAGE))
        self.status = status
        self.param = None if param is None else shortened(param, _LONGEST_PARAM)
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error object, ready for JSON."""
        error = {
            "message": str(self),
            "type": _error_type(self.status),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> Response:
        """The HTTP response."""
        return Response(
            json.dumps(self.body), self.status, self.headers, media_type="application/json"
        )


class InvalidBodyError(HTTPException):
    """A body that is JSON, but not what its route takes; FastAPI lets it through as it is."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.status)
        self.error = error


def unavailable(message: str, code: str) -> ApiError:
    """A 503: the server is up, but does not serve requests now."""
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return ApiError(status, message, code=code, headers={"Retry-After": "5"})


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400: the request itself is wrong."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about an exception; an unexpected one becomes a bare 500."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _invalid_body(error.errors())
        case InvalidBodyError():
            return error.error
        case RequestError():
            # Such a message begins with its field: "temperature must be in ...", "prompt has ...".
            named = re.match(r"(\w+) (must be|has) ", str(error))
            return invalid(str(error), named[1] if named else None)
        case QueueFullError():
            seconds = max(1, math.ceil(error.retry_after))
            return ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                str(error),
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )
        case EngineDeadError():
            return unavailable(str(error), "engine_dead")
        case RecursionError():
            return _unreadable_body(error)
        case HTTPException(status_code=HTTPStatus.BAD_REQUEST) if error.__cause__ is not None:
            return _unreadable_body(error.__cause__)
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case _:
            return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal server error")


def _error_type(status: int) -> str:
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return "authentication_error"
        case HTTPStatus.TOO_MANY_REQUESTS:
            return "rate_limit_error"
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return "service_unavailable_error"
        case _:
            return "server_error" if status >= 500 else "invalid_request_error"


def _unreadable_body(cause: BaseException) -> ApiError:
    """What is wrong with a body where reading it ended with this error, whatever FastAPI says."""
    match cause:
        case RecursionError():
            # Nothing here is nested but what a client sends.
            return invalid(
                "the request body is nested too deeply: lists and objects may lie in one another "
                "some hundreds of levels deep"
            )
        case UnicodeDecodeError(encoding=encoding, object=body, start=start):
            return invalid(
                f"the request body is not valid {encoding.upper()}: "
                f"{bytes(body[start : start + 1]).hex()} (hexadecimal) at byte {start}"
            )
        case ValueError():
            return invalid(f"the request body cannot be read: {cause}")
        case _:
            return invalid("the request body cannot be read")


def _invalid_body(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first thing that is wrong with a request's body, with the field's path."""
    first = errors[0]
    path = first["loc"][1:]  # the first element is "body" or "query"
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return invalid(f"the request body is not valid JSON: {reason} at character {path[0]}")
    if not path:
        return invalid(
            "the request body must be a JSON object, sent with Content-Type: application/json"
        )
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)[1:]
    if first["type"] == "missing":
        given = first["input"] if isinstance(first["input"], dict) else {}
        near = nearest(str(path[-1]), given)
        hint = f"; is it what {near!r} was meant to be?" if near else ""
        other, endpoint = _OTHER_ENDPOINTS.get(field, ("", ""))
        if other in given:
            hint = f"; {other} is for {endpoint}"
        return invalid(f"{field} is required{hint}", field)
    return invalid(f"{field} {_must(first['msg'])}, got {_shown(first['input'])}", field)


def _must(message: str) -> str:
    """What Pydantic says of a value, as something that a field must be or have."""
    if said := _SHOULD.fullmatch(message):
        return f"must {said['what']}"
    return f"must be {message.removeprefix('must be ')}"


def nearest(name: str, known: Iterable[str], least: float = 0.6) -> str | None:
    """The known name that a misspelt one is most like; None where it is like none."""
    # Comparing takes time with the product of the lengths.
    shorts = {each[:_LONGEST_NAME]: each for each in known}
    found = difflib.get_close_matches(name[:_LONGEST_NAME], shorts, n=1, cutoff=least)
    return shorts[found[0]] if found else None


def _shown(value: object) -> str:
    """The beginning of a value as JSON, made without the rest of it."""
    if isinstance(value, str):
        value = value[: _LONGEST_VALUE + 1]
    text = ""
    for piece in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
        text += piece
        if len(text) > _LONGEST_VALUE:
            break
    return shortened(text, _LONGEST_VALUE)
