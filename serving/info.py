"""What is served, and how the server is: models, health, readiness, load, version, metrics."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from fjx import __version__
from fjx.serving.openapi import NO_BODY, errors, text_response
from fjx.serving.responses import Load, ModelCard, ModelList, Version
from fjx.serving.state import ServerState


def model_routes(state: ServerState) -> APIRouter:
    """GET /v1/models and /v1/models/{id}."""
    router = APIRouter()

    def card(name: str) -> ModelCard:
        state.check_serving()
        return ModelCard(
            id=name,
            created=state.created,
            root=state.llm.config.model,
            max_model_len=state.llm.max_model_len,
        )

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """List the one model that is served, under each of its names."""
        return ModelList(data=[card(name) for name in state.model_names])

    @router.get("/v1/models/{model:path}", responses=errors(404))
    async def get_model(model: str) -> ModelCard:
        """Describe the model."""
        found = card(model)
        state.check_model(model)
        return found

    return router


def status_routes(state: ServerState) -> APIRouter:
    """GET /health, /ping, /ready, /load, /version and /metrics."""
    router = APIRouter()

    # Amazon SageMaker asks for /ping; it may do so with POST.
    @router.post("/ping", response_class=Response, responses=NO_BODY)
    @router.get("/ping", response_class=Response, responses=NO_BODY)
    @router.get("/health", response_class=Response, responses=NO_BODY)
    async def health() -> Response:
        """200 while the server lives, also while it loads; 503 if the engine has died, or hangs."""
        state.check_healthy()
        return Response(status_code=HTTPStatus.OK)

    @router.get("/ready", response_class=Response, responses=NO_BODY)
    async def ready() -> Response:
        """200 while new requests are served; 503 before the model is loaded, and while draining."""
        state.check_serving()
        return Response(status_code=HTTPStatus.OK)

    @router.get("/load")
    async def load() -> Load:
        """How many HTTP requests are being answered, besides this one."""
        return Load(server_load=state.in_flight.count - 1)

    @router.get("/version")
    async def version() -> Version:
        """The server's version."""
        return Version(version=__version__)

    @router.get(
        "/metrics", response_class=Response, responses=text_response("text/plain; version=1.0.0")
    )
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(state.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
