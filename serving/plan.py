"""GET, POST and DELETE /v1/plan: which stages run on which devices, and changing that.

A change of plan belongs to the server, not to the request that asked for it: it goes on when the
client leaves, and only DELETE /v1/plan or the server's end abort it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import WithJsonSchema

from fjx import (
    MeshError,
    PlanStatus,
    RegranularizationBusyError,
    RegranularizationError,
    SwitchRecord,
    UserError,
)
from fjx.errors import MemoryFitError
from fjx.serving.bodies import BodyRoute
from fjx.serving.config import ServerConfig
from fjx.serving.errors import ApiError, invalid, unavailable
from fjx.serving.openapi import errors
from fjx.serving.responses import PlanResponse
from fjx.serving.state import PlanTarget, ServerState
from fjx.sharding.plan.plan_json import deployment_to_json
from fjx.sharding.planner.mesh_file import READY_MADE
from fjx.sharding.table_fields import TableFields, is_integer
from fjx.sharding.toml_source import Path
from fjx.wording import listed, shortened

logger = logging.getLogger("fjx.server")

MESH_NAMES = (*READY_MADE, "auto")
"""Meshes that any client may name; every other text is the path of a file."""

_PlanBody = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "stages": {
                    "anyOf": [
                        {"type": "integer", "minimum": 1},
                        {"type": "array", "items": {"type": "object"}},
                    ]
                },
                "mesh": {"type": "string", "minLength": 1},
                "replicas": {"type": "array", "items": {"type": "object"}},
                "microbatches": {"type": "integer", "minimum": 1},
                "shared_devices": {"type": "boolean"},
                "wait": {"type": "boolean", "default": True},
            },
            "additionalProperties": False,
        }
    ),
]
"""What `_target` reads; it has better words for what is wrong."""

_PLAN_KEYS = ("stages", "replicas", "microbatches", "shared_devices")


def plan_routes(state: ServerState) -> APIRouter:
    """The routes, bound to an engine."""
    # A web page can send a body without a Content-Type to any address, unasked; one that is
    # declared as JSON it can send only where the server lets its origin in.
    router = APIRouter(strict_content_type=True, route_class=BodyRoute)
    changes = _Changes(state)

    @router.get("/v1/plan", response_model=PlanResponse)
    async def get_plan() -> dict[str, Any]:
        """Say which plan serves, and what becomes of it."""
        state.check_serving()
        return plan_status_to_json(state.llm.plan_status())

    accepted: dict[int | str, dict[str, Any]] = {
        202: {"model": PlanResponse, "description": "The change has begun."}
    }

    @router.post(
        "/v1/plan",
        response_model=PlanResponse,
        responses={**errors(400, 403, 408, 409, 413, 415), **accepted},
    )
    async def change_plan(body: _PlanBody) -> JSONResponse:
        """Change to another plan: stages (a number), mesh (a name or file), or a whole plan."""
        state.check_serving()
        try:
            fields = TableFields(body, (), "the request", _error)
            target = _target(fields, state)
            wait = fields.flag("wait", True)
            await changes.run(target, wait)
        except (UserError, RegranularizationError) as error:
            raise _api_error(error) from error
        status = HTTPStatus.OK if wait else HTTPStatus.ACCEPTED
        return JSONResponse(plan_status_to_json(state.llm.plan_status()), status)

    @router.delete("/v1/plan", response_model=PlanResponse, responses=errors(409))
    async def abort_change() -> dict[str, Any]:
        """Abort the change that is under way; the plan before it serves on."""
        state.check_serving()
        if not await state.llm.abort_regranularization():
            raise ApiError(
                HTTPStatus.CONFLICT, "no change of the plan is under way", code="no_switch"
            )
        return plan_status_to_json(state.llm.plan_status())

    return router


class _Changes:
    """Runs changes of plan in tasks of their own."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._running: set[asyncio.Task[SwitchRecord]] = set()
        """The event loop itself holds no task."""

    async def run(self, target: PlanTarget, wait: bool) -> None:
        """Change the plan; cancelling this leaves the change alone, and so does the server's end.

        Raises:
            ApiError: the server stops.
            UserError: the target is wrong or does not fit.
            RegranularizationError: another change is under way, or this one was aborted.
        """
        task = asyncio.create_task(self._state.llm.regranularize(target, wait=wait))
        self._running.add(task)
        task.add_done_callback(self._ended)
        stopping = asyncio.create_task(self._state.stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if not task.done():
            raise unavailable("the server is shutting down", "shutting_down")
        task.result()

    def _ended(self, task: asyncio.Task[SwitchRecord]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        # A target that cannot be is the client's mistake, which the log of refusals tells.
        if error is not None and not isinstance(error, UserError):
            logger.warning("the plan was not changed: %s", " ".join(str(error).split()))


def plan_status_to_json(status: PlanStatus) -> dict[str, Any]:
    """The answer of every method of /v1/plan."""
    return {
        "object": "plan",
        "stages": status.deployment.replicas[0].granularity,
        **deployment_to_json(status.deployment),
        "state": status.state,
        "switch": _switch_to_json(status.switch),
        "last_switch": _switch_to_json(status.last),
    }


def _switch_to_json(record: SwitchRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {
        "number": record.number,
        "reason": record.reason,
        "state": record.state,
        "progress": record.progress,
        "error": record.error,
        "seconds": record.seconds,
        "pause_seconds": record.pause_seconds,
        "planned_bytes": record.planned_bytes,
        "moved_bytes": record.moved_bytes,
        "parameter_bytes": record.parameter_bytes,
        "kv_bytes": record.kv_bytes,
        "dirty_bytes": record.dirty_bytes,
        "dirty_pages": record.dirty_pages,
        "rounds": record.rounds,
        "from": deployment_to_json(record.before),
        "to": deployment_to_json(record.after),
    }


def _target(fields: TableFields, state: ServerState) -> PlanTarget:
    """What a request wants: a number of stages, a mesh, or a plan.

    Raises:
        MeshError: it says nothing of these, or contradicts itself.
        ApiError: it names a file and may not.
    """
    fields.only([*_PLAN_KEYS, "mesh", "wait"])
    plan = {key: value for key, value in fields.values.items() if key in _PLAN_KEYS}
    stages: Any = plan.get("stages")
    if "mesh" in fields:
        if plan:
            raise fields.error(None, f"mesh says all; leave out {listed(plan)}")
        mesh: str = fields.text("mesh")
        _check_mesh_is_open(mesh, state.config)
        return mesh
    if is_integer(stages):
        if len(plan) > 1:
            raise fields.error(
                None,
                "a number of stages stands alone; leave out the other keys, or give stages as a "
                "list with the granules and devices of each",
            )
        most = state.llm.plan_status().deployment.replicas[0].num_granules
        if not 1 <= stages <= most:
            raise fields.error(
                "stages",
                f"stages must be 1 to {most}, the model's granules, got {shortened(str(stages))}",
            )
        return int(stages)
    if "stages" in plan and not isinstance(stages, list):
        raise fields.error(
            "stages",
            "stages must be a number of stages, or a list with the granules and devices of each, "
            f"got {shortened(repr(stages))}",
        )
    if "stages" not in plan and "replicas" not in plan:
        raise fields.error(
            None,
            'expected stages, such as {"stages": 2}; or mesh, such as {"mesh": "pipeline-2"}; or '
            "a whole plan, as GET /v1/plan shows it under replicas",
        )
    return plan


def _check_mesh_is_open(mesh: str, config: ServerConfig) -> None:
    """Refuse files of the server's disk to clients from anywhere without a key for them."""
    if mesh in MESH_NAMES or config.admin_key is not None or _is_loopback(config.host):
        return
    raise ApiError(
        HTTPStatus.FORBIDDEN,
        f"there is no ready-made mesh {shortened(mesh)!r}, and this server reads no mesh files for "
        f"its clients; use {listed(MESH_NAMES, last='or')}, send the whole plan, or start the "
        "server with --admin-key",
        param="mesh",
        code="mesh_file_refused",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _error(path: Path, message: str) -> MeshError:
    return MeshError(message)


def _api_error(error: UserError | RegranularizationError) -> ApiError:
    match error:
        case MemoryFitError():
            return invalid(str(error), code="does_not_fit")
        case UserError():
            return invalid(str(error), code="invalid_plan")
        case RegranularizationBusyError():
            return ApiError(HTTPStatus.CONFLICT, str(error), code="switch_in_progress")
        case _:
            return ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"the change of the plan was aborted, and the plan before it serves on: {error}",
                code="switch_aborted",
            )
