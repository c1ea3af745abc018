"""What is served, and how the server is: models, health, readiness, version, metrics."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from fjx import __version__
from fjx.serving.protocol import ModelCard, ModelList
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

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str) -> ModelCard:
        """Describe the model."""
        found = card(model)
        state.check_model(model)
        return found

    return router


def status_routes(state: ServerState) -> APIRouter:
    """GET /health, /ready, /version and /metrics."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        """200 while the server lives, also while it loads; 503 if the engine has died, or hangs."""
        state.check_healthy()
        return Response(status_code=HTTPStatus.OK)

    @router.get("/ready")
    async def ready() -> Response:
        """200 while new requests are served; 503 before the model is loaded, and while draining."""
        state.check_serving()
        return Response(status_code=HTTPStatus.OK)

    @router.get("/version")
    async def version() -> dict[str, str]:
        """The server's version."""
        return {"version": __version__}

    @router.get("/metrics")
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(state.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
