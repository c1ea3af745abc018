"""The web application: routes, error responses and middleware around an engine."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException

from fjx import EngineDeadError, QueueFullError, RequestError, __version__
from fjx.serving.chat import chat_routes
from fjx.serving.completions import completion_routes
from fjx.serving.config import ServerConfig
from fjx.serving.errors import ApiError, as_api_error
from fjx.serving.info import model_routes, status_routes
from fjx.serving.metrics import Metrics
from fjx.serving.middleware import RequestLifetime, RequireKey
from fjx.serving.plan import plan_routes
from fjx.serving.refusals import LogRefusals, RefusalLog
from fjx.serving.state import AsyncEngine, ServerState
from fjx.serving.tokens import token_routes

_EXPLAINED = (
    ApiError,
    RequestValidationError,
    RequestError,
    QueueFullError,
    EngineDeadError,
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
        Metrics(model_name, llm.stats),
        RefusalLog(server_config.log_requests),
    )
    # strict_content_type off: a body without a Content-Type header is read as JSON.
    app = FastAPI(title="fjx", version=__version__, strict_content_type=False)
    app.state.server = state
    for router in (
        completion_routes(state),
        chat_routes(state),
        model_routes(state),
        token_routes(state),
        plan_routes(state),
        status_routes(state),
    ):
        app.include_router(router)
    for kind in _EXPLAINED:
        app.add_exception_handler(kind, _explain)
    # The last one added is the outermost.
    app.add_middleware(
        RequestLifetime,
        max_body_bytes=server_config.max_body_bytes,
        max_body_values=server_config.max_body_values,
        body_timeout=server_config.body_timeout,
        in_flight=state.in_flight,
    )
    if server_config.api_key is not None or server_config.admin_key is not None:
        app.add_middleware(
            RequireKey, api_key=server_config.api_key, admin_key=server_config.admin_key
        )
    if server_config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server_config.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    app.add_middleware(LogRefusals, log=state.refusals)
    return app


async def _explain(_: Request, error: Exception) -> Response:
    return as_api_error(error).response()
