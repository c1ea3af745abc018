"""What a user or the policy asks for, as a deployment on this machine for this model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from fjx.errors import MeshError
from fjx.sharding.costs.figures import Workload, check_memory
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.plan.plan import Deployment, Plan
from fjx.sharding.plan.plan_json import deployment_from_json
from fjx.sharding.planner.assign import places_of
from fjx.sharding.planner.mesh_file import MeshFile, load_mesh
from fjx.sharding.planner.planner import even_mesh, plan_auto, plan_mesh
from fjx.sharding.topology.topology import Topology, live_topology

logger = logging.getLogger(__name__)

PlanTarget = int | str | Mapping[str, Any] | MeshFile | Plan | Deployment
"""A number of stages, the name or path of a mesh file (``auto``: as few stages as memory allows), a
plan as JSON values, a mesh, or a plan."""

ELASTIC_CPU_DEVICES = 8
"""Virtual devices that a CPU has at least, so that plans of several stages can be tried on it."""


@dataclass(frozen=True)
class Planner:
    """Finds deployments for one model on this machine."""

    graph: GranuleGraph
    topology: Topology
    workload: Workload
    fragments: bool = False
    """Whether stages get the devices that placement finds, see `plan_mesh`."""

    def plan(self, target: PlanTarget, current: Deployment | None = None) -> Deployment:
        """The deployment that ``target`` means; of equally fast ones, the one that moves the fewest
        bytes from ``current``.

        Raises:
            MeshError: it does not suit the machine or the model.
        """
        if isinstance(target, Plan):
            target = Deployment((target,))
        if isinstance(target, Mapping):
            target = deployment_from_json(dict(target))
        if isinstance(target, Deployment):
            return self._checked(target)
        if target == "auto":
            return plan_auto(self.topology, self.graph, self.workload, fragments=self.fragments)
        if isinstance(target, bool):
            raise MeshError(f"stages must be a whole number, got {target}")
        if isinstance(target, int):
            tensor = current.replicas[0].stages[0].mesh.tensor if current is not None else 1
            replicas = len(current.replicas) if current is not None else 1
            target = even_mesh(target, tensor=tensor, replicas=replicas)
        mesh = load_mesh(target) if isinstance(target, str) else target
        return plan_mesh(
            mesh,
            self.topology,
            self.graph,
            self.workload,
            current=current,
            fragments=self.fragments,
        )

    def _checked(self, deployment: Deployment) -> Deployment:
        for plan in deployment.replicas:
            plan.check_model(len(self.graph.granules), dict(self.graph.split_sizes))
            check_memory(self.graph, plan, places_of(plan, self.topology), self.workload)
        return deployment


def live_planner(graph: GranuleGraph, workload: Workload) -> Planner:
    """A planner for this process's devices."""
    return Planner(graph, live_topology(jax.local_devices()), workload)


def make_cpu_devices(*meshes: str) -> None:
    """Give the platform ``cpu`` as many virtual devices as meshes need, before JAX starts.

    Raises:
        MeshError: there is no such mesh, or its file is wrong.
    """
    needed = [load_mesh(mesh).devices_needed("cpu") for mesh in meshes if mesh != "auto"]
    wanted = max(ELASTIC_CPU_DEVICES, getattr(jax.config, "jax_num_cpu_devices", -1), *needed)
    try:
        jax.config.update("jax_num_cpu_devices", wanted)  # type: ignore[no-untyped-call]
    except RuntimeError:
        # JAX has started: the planner says so if its devices are too few.
        logger.debug("JAX runs already; it keeps its number of CPU devices")
