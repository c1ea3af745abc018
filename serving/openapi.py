"""What GET /openapi.json says beyond what the routes' types do: errors, streams, keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from fjx.serving.responses import ErrorResponse

NO_BODY: dict[int | str, dict[str, Any]] = {200: {"content": {}}}
"""Of a route that answers with its status alone."""


def text_response(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that answers with text."""
    return {200: {"content": {media_type: {"schema": {"type": "string"}}}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that answers with these statuses when something is wrong."""
    return {
        status: {"model": ErrorResponse, "description": _MEANINGS[status]} for status in statuses
    }


_MEANINGS = {
    400: "The request is wrong: `param` names the field.",
    401: "The key is missing or wrong.",
    403: "The client may not do this.",
    404: "There is no such model or path.",
    408: "The body did not come in time.",
    409: "Another change is under way, or there is none.",
    413: "The body is larger than the server takes.",
    415: "The body is compressed.",
    429: "Too many requests wait: `Retry-After` says when to come back.",
    500: "The server failed.",
    503: "The server loads, stops or has died.",
}

GENERATION: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    **errors(400, 404, 408, 413, 415, 429),
}
"""Of a route that sends server-sent events where ``stream`` is true."""


def describe(app: FastAPI, needs_key: bool) -> None:
    """Have an application describe itself as it is.

    FastAPI would say that a wrong body gets a 422; it gets a 400 here.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            operations = [each for path in schema["paths"].values() for each in path.values()]
            for operation in operations:
                operation["responses"].pop("422", None)
            components = schema["components"]
            for name in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(name, None)
            if needs_key:
                components["securitySchemes"] = {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
                }
                schema["security"] = [{"bearer": []}, {"header": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
