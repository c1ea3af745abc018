"""Plans as JSON: what ``GET /v1/plan`` returns and ``POST /v1/plan`` takes.

::

    {"replicas": [
      {"microbatches": 2,
       "shared_devices": false,
       "stages": [
         {"granules": [0, 4], "devices": ["localhost/cpu:0"], "axes": {"tensor": 1}},
         {"granules": [4, 8], "devices": ["localhost/cpu:1"], "axes": {"tensor": 1}}]}]}

``granules`` is the first granule and the one after the last. ``microbatches`` (1) and
``shared_devices`` (false) may be left out, and so may ``axes``, where all devices are the axis
``tensor``. A single plan may stand without ``replicas`` around it.
"""

from __future__ import annotations

from typing import Any

from fjx.errors import MeshError
from fjx.sharding.plan.plan import Deployment, Device, Mesh, Plan, Stage
from fjx.sharding.table_fields import TableFields, errors_of, is_integer


def deployment_to_json(deployment: Deployment) -> dict[str, Any]:
    """The deployment as values for `json.dumps`."""
    return {"replicas": [plan_to_json(plan) for plan in deployment.replicas]}


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as values for `json.dumps`."""
    return {
        "microbatches": plan.microbatches,
        "shared_devices": plan.shared_devices,
        "stages": [
            {
                "granules": [stage.granules.start, stage.granules.stop],
                "devices": [str(device) for device in stage.mesh.devices],
                "axes": dict(stage.mesh.axes),
            }
            for stage in plan.stages
        ],
    }


def deployment_from_json(values: Any) -> Deployment:
    """Read `deployment_to_json` or `plan_to_json` back from parsed JSON.

    Raises:
        MeshError: a value is missing, unknown or wrong; the message says where.
    """
    fields = TableFields(values, (), "the plan", errors_of("plan"))
    if "replicas" not in fields:
        return Deployment((_plan(fields),))
    fields.only(["replicas"])
    return Deployment(tuple(_plan(replica) for replica in fields.tables("replicas")))


def _plan(fields: TableFields) -> Plan:
    fields.only(["stages", "microbatches", "shared_devices"])
    stages = tuple(_stage(stage) for stage in fields.tables("stages"))
    microbatches = fields.integer("microbatches", 1, least=1)
    shared_devices = fields.flag("shared_devices", False)
    try:
        return Plan(stages, microbatches, shared_devices)
    except MeshError as error:
        raise fields.error(None, str(error)) from None


def _stage(fields: TableFields) -> Stage:
    fields.only(["granules", "devices", "axes"])
    granules, devices = fields.get("granules"), fields.get("devices")
    if not (isinstance(granules, list) and len(granules) == 2 and all(map(is_integer, granules))):
        raise fields.error("granules", f"granules must be [first, after last], got {granules!r}")
    if not (isinstance(devices, list) and all(isinstance(device, str) for device in devices)):
        raise fields.error("devices", f"devices must be a list of texts, got {devices!r}")
    axes: tuple[tuple[str, int], ...] = (("tensor", len(devices)),)
    if "axes" in fields:
        sizes = fields.table("axes")
        axes = tuple((name, sizes.integer(name, least=1)) for name in sizes.values)
    try:
        mesh = Mesh(tuple(Device.parse(device) for device in devices), axes)
        return Stage(range(*granules), mesh)
    except MeshError as error:
        raise fields.error(None, str(error)) from None
