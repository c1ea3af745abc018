"""What ``fjx plan`` works with: the machine, the costs, and the plans made from them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from fjx.config import UNKNOWN_KV_GIB, EngineConfig
from fjx.errors import UserError
from fjx.kernels.matmul import multiplies_bfloat16
from fjx.models.costs import DEVICE_FIGURES, model_graph
from fjx.models.loading.load import load_model_config
from fjx.models.loading.source import resolve_config
from fjx.pipeline.buckets import row_buckets
from fjx.plots.change import Change
from fjx.plots.plan import plan_svg
from fjx.sharding.costs.difference import difference
from fjx.sharding.costs.figures import Place, Workload
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.costs.profile import read_profile
from fjx.sharding.costs.table import difference_table, plan_table
from fjx.sharding.plan.plan import Deployment, Device
from fjx.sharding.plan.plan_json import deployment_to_json
from fjx.sharding.planner.assign import assign_devices, places_of
from fjx.sharding.planner.mesh_file import MeshFile, load_mesh
from fjx.sharding.planner.planner import plan_auto, plan_mesh
from fjx.sharding.topology.cluster_file import read_cluster
from fjx.sharding.topology.topology import DeviceState, Topology, live_topology

AUTO = "auto"


@dataclass(frozen=True)
class PlacedPlan:
    """A deployment with what its stages' places have to give."""

    deployment: Deployment
    places: Sequence[Sequence[Place]]
    """For each replica, those of its stages."""


class Planning:
    """The machine, the model's costs and the workload that the options name.

    Raises:
        UserError: the options contradict each other, or a file or the model cannot be read.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        names = {name for name in (arguments.mesh, arguments.before) if name is not None}
        self._meshes = {name: load_mesh(name) for name in names if name != AUTO}
        self._topology = read_machine(arguments, list(self._meshes.values()))
        self._graph = read_costs(arguments, self._topology.platform)
        tokens = arguments.kv_tokens or default_kv_tokens(self._graph)
        self._workload = Workload(rows=arguments.rows, kv_tokens=tokens, copied_tokens=tokens)

    def plan(self, mesh: str, before: PlacedPlan | None = None) -> PlacedPlan:
        """Plan a mesh; of equally fast plans, the one that moves the fewest bytes from
        ``before``.

        Raises:
            MeshError: it does not suit the model or the machine.
        """
        topology, graph, workload = self._topology, self._graph, self._workload
        if mesh == AUTO:
            deployment = plan_auto(topology, graph, workload)
            return PlacedPlan(
                deployment, [places_of(plan, topology) for plan in deployment.replicas]
            )
        current = None if before is None else before.deployment
        deployment = plan_mesh(self._meshes[mesh], topology, graph, workload, current=current)
        return PlacedPlan(deployment, assign_devices(self._meshes[mesh], topology))

    def table(self, plan: PlacedPlan) -> str:
        """The plan as text."""
        return plan_table(self._graph, plan.deployment, plan.places, self._workload)

    def difference(self, before: PlacedPlan, after: PlacedPlan) -> str:
        """What going from one plan to another moves, as text."""
        tokens = self._workload.copied_tokens
        return difference_table(
            difference(before.deployment, after.deployment, self._graph, tokens)
        )

    def picture(self, plan: PlacedPlan, before: PlacedPlan | None = None, title: str = "") -> str:
        """The plan as SVG, and what going there from ``before`` moves, under a title."""
        change = None
        if before is not None:
            old, new, tokens = before.deployment, plan.deployment, self._workload.copied_tokens
            change = Change(title, old, new, difference(old, new, self._graph, tokens))
        return plan_svg(self._graph, plan.deployment, plan.places, self._workload, change)

    def as_json(self, plan: PlacedPlan) -> dict[str, Any]:
        """The plan as values for `json.dumps`."""
        return deployment_to_json(plan.deployment)


def read_machine(arguments: argparse.Namespace, meshes: Sequence[MeshFile]) -> Topology:
    """The machine that is meant.

    Where it is this one, it has as many CPU devices as the meshes need, because a CPU can be any
    number of devices to JAX; none is started for it.

    Raises:
        UserError: the cluster file cannot be read.
    """
    if arguments.cluster is not None:
        return read_cluster(arguments.cluster)
    topology = live_topology(jax.devices())
    states = list(topology.devices)
    needed = 0
    if topology.platform == "cpu":
        needed = max((mesh.devices_needed("cpu") for mesh in meshes), default=0)
    host, most = states[0].device.host, arguments.devices or max(len(states), needed)
    made_up = (Device(host, topology.platform, index) for index in range(len(states), most))
    states = [*states[:most], *(DeviceState(device, states[0].free_bytes) for device in made_up)]
    if arguments.device_memory is not None:
        states = [replace(state, free_bytes=arguments.device_memory) for state in states]
    return replace(topology, devices=tuple(states))


def read_costs(arguments: argparse.Namespace, platform: str) -> GranuleGraph:
    """The costs of the model's pieces: a profile's, or estimates.

    Raises:
        UserError: the options contradict each other, or a file or the model cannot be read.
    """
    if arguments.profile is not None:
        graph = read_profile(arguments.profile)
        if arguments.model not in (None, graph.model):
            raise UserError(
                f"profile {arguments.profile} is of {graph.model}, not of {arguments.model}; leave "
                "out --model or --profile"
            )
        if any(
            given is not None
            for given in (arguments.dtype, arguments.quantization, arguments.granule_layers)
        ):
            raise UserError(
                "a profile is of one dtype, one quantization and one size of granules; leave out "
                "--dtype, --quantization and --granule-layers, or --profile"
            )
        return graph
    name = arguments.model or EngineConfig.model
    config = load_model_config(resolve_config(name, arguments.revision, arguments.cache_dir))
    dtype = arguments.dtype
    if dtype is None:
        dtype = "bfloat16" if platform != "cpu" or multiplies_bfloat16() else "float32"
    return model_graph(
        replace(config, quantization=arguments.quantization),
        jnp.dtype(dtype),
        arguments.granule_layers,
        row_buckets(max(EngineConfig.max_num_batched_tokens, arguments.rows)),
        name=name,
        device=DEVICE_FIGURES.get(platform, DEVICE_FIGURES["gpu"]),
    )


def default_kv_tokens(graph: GranuleGraph) -> int:
    """Token slots of KV memory, where nobody says how many."""
    token_bytes = sum(piece.kv_bytes_per_token for _, piece in graph.pieces())
    return int(UNKNOWN_KV_GIB * 2**30) // max(1, token_bytes)
