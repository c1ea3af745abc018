"""The web application: routes, error responses and middleware around an engine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from fjx import EngineDeadError, QueueFullError, RequestError, __version__
from fjx.serving.chat import chat_routes
from fjx.serving.completions import completion_routes
from fjx.serving.config import ServerConfig
from fjx.serving.errors import ApiError, as_api_error
from fjx.serving.http_metrics import CountRequests
from fjx.serving.info import model_routes, status_routes
from fjx.serving.metrics import ServerMetrics
from fjx.serving.middleware import RequestLifetime, RequireKey
from fjx.serving.openapi import describe, errors
from fjx.serving.plan import plan_routes
from fjx.serving.refusals import LogRefusals, RefusalLog
from fjx.serving.request_id import HEADER, RequestId
from fjx.serving.routing import HeadAndOptions, method_not_allowed, not_found
from fjx.serving.state import AsyncEngine, ServerState
from fjx.serving.tokens import token_routes

_EXPLAINED = (
    ApiError,
    RequestValidationError,
    RequestError,
    QueueFullError,
    EngineDeadError,
    RecursionError,
    HTTPException,
    Exception,
)


def create_app(llm: AsyncEngine, server_config: ServerConfig) -> FastAPI:
    """Build the server's application.

    Args:
        llm: the engine, an ``AsyncLLM``. It need not be ready, nor started: until it is, requests
            get a 503.
        server_config: names, limits and keys.

    Returns:
        The application; ``app.state.server`` is its ``ServerState``.
    """
    model_name, *_ = server_config.served_model_name or (llm.config.model,)
    state = ServerState(
        llm,
        server_config,
        ServerMetrics(model_name, llm.stats, lambda: llm.config),
        RefusalLog(server_config.log_requests),
    )
    # strict_content_type off: a body without a Content-Type header is read as JSON.
    app = FastAPI(
        title="fjx",
        version=__version__,
        strict_content_type=False,
        swagger_ui_oauth2_redirect_url=None,
        responses=errors(401, 500, 503),
    )
    app.state.server = state
    routers = (
        completion_routes(state),
        chat_routes(state),
        model_routes(state),
        token_routes(state),
        token_routes(state, prefix="/v1"),
        plan_routes(state),
        status_routes(state),
    )
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    for router in routers:
        app.include_router(router)
    needs_key = server_config.api_key is not None or server_config.admin_key is not None
    describe(app, needs_key)
    for kind in _EXPLAINED:
        app.add_exception_handler(kind, partial(_explain, routes))
    # The last one added is the outermost.
    app.add_middleware(
        RequestLifetime,
        max_body_bytes=server_config.max_body_bytes,
        max_body_values=server_config.max_body_values,
        body_timeout=server_config.body_timeout,
        in_flight=state.in_flight,
    )
    app.add_middleware(HeadAndOptions, routes=routes)
    if needs_key:
        app.add_middleware(
            RequireKey, api_key=server_config.api_key, admin_key=server_config.admin_key
        )
    if server_config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server_config.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[HEADER],
        )
    app.add_middleware(CountRequests, metrics=state.metrics.http, routes=routes)
    app.add_middleware(LogRefusals, log=state.refusals)
    app.add_middleware(RequestId)
    return app


async def _explain(routes: Sequence[BaseRoute], request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        match error.status_code:
            case HTTPStatus.NOT_FOUND:
                error = not_found(routes, request.scope)
            case HTTPStatus.METHOD_NOT_ALLOWED:
                error = method_not_allowed(routes, request.scope)
    response = as_api_error(error).response()
    # An unexpected error is answered outside of all middleware.
    response.headers[HEADER] = request.state.request_id
    return response
