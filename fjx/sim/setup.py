"""A model on a kind of device: its plans, what their steps cost, and the KV room that they have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fjx.granularity.ladder import Ladder, ladder_from_graph
from fjx.pipeline.buckets import row_buckets
from fjx.sharding.costs.analytic import DeviceFigures, ModelSizes, analytic_graph
from fjx.sharding.costs.figures import Workload as PlanWorkload
from fjx.sharding.costs.figures import plan_figures
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.partition.needs import PlanNeed, need_of
from fjx.sharding.plan.plan import Deployment, Device, Plan
from fjx.sharding.planner.assign import places_of
from fjx.sharding.planner.planner import even_mesh, plan_auto, plan_mesh
from fjx.sharding.topology.topology import DeviceState, Link, Topology
from fjx.sim.costs import StageCosts, roofline_costs
from fjx.sim.hardware import GPUS, LAYERS, MODELS, NETWORK
from fjx.sim.steps import ReplicaLimits
from fjx.sim.workload import SimRequest, Workload

_RESERVED = 0.1
"""Share of a device's memory for programs, activations and fragments, as servers reserve it."""


@dataclass(frozen=True, kw_only=True)
class SimSetup:
    """What all systems of a comparison have in common."""

    sizes: ModelSizes
    graph: GranuleGraph
    device: DeviceFigures
    memory_bytes: int
    """Of each device, for parameters and KV pages."""
    link: Link
    """Between stages."""
    max_devices: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 512
    page_size: int = 16
    max_draft_rows: int = 256
    """Drafted tokens in a step, where there is a drafter."""
    _costs: dict[object, StageCosts] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @property
    def topology(self) -> Topology:
        """As many devices alike as plans may use. Which of the cluster's devices they are is for
        placement to say."""
        devices = (Device("cluster", "gpu", i) for i in range(self.max_devices))
        states = tuple(DeviceState(device, self.memory_bytes) for device in devices)
        return Topology(states, within=self.link, between=self.link)

    def deployment(self, stages: int, replicas: int = 1, tensor: int = 1) -> Deployment:
        """Replicas of a pipeline, cut by the engine's planner.

        Raises:
            MemoryFitError: the model does not fit.
            MeshError: there are too few devices or granules.
        """
        mesh = even_mesh(stages, tensor=tensor, replicas=replicas)
        return plan_mesh(mesh, self.topology, self.graph, self._plan_workload(0))

    def smallest(self) -> Deployment:
        """One replica with the fewest stages that hold the parameters and a batch of KV pages.

        Raises:
            MemoryFitError: the model does not fit on all devices.
        """
        return plan_auto(
            self.topology, self.graph, self._plan_workload(self.max_num_batched_tokens)
        )

    def ladder(self, rungs: dict[str, Deployment], kv_tokens: int) -> Ladder:
        """The engine's ladder of these deployments, whose replicas have so much KV memory."""
        return ladder_from_graph(self.graph, rungs, self._plan_workload(kv_tokens), self.topology)

    def _plan_workload(self, kv_tokens: int) -> PlanWorkload:
        return PlanWorkload(rows=self.max_num_seqs, kv_tokens=kv_tokens)

    def need(self, plan: Plan, kv_tokens: int) -> PlanNeed:
        """What the plan's stages need, wherever they are."""
        return need_of(self.graph, plan, self._plan_workload(kv_tokens))

    def costs(self, plan: Plan, topology: Topology | None = None) -> StageCosts:
        """What the plan's steps cost.

        Args:
            plan: Of devices of the topology, all alike.
            topology: With the links that its stages get; by default `topology`.
        """
        topology = topology or self.topology
        links = [place.link for place in places_of(plan, topology)]
        stages = [(s.granules, s.mesh.tensor) for s in plan.stages]
        key = (*stages, *links)  # not the devices: placements are many, and few differ in links
        if key not in self._costs:
            self._costs[key] = roofline_costs(
                self.sizes, self.graph, plan, topology, self.device, self._max_rows
            )
        return self._costs[key]

    @property
    def _max_rows(self) -> int:
        return self.max_num_batched_tokens + self.max_num_seqs

    def parameter_bytes(self, plan: Plan) -> list[int]:
        """Of each stage, on each of its devices."""
        return [
            sum(p.parameter_bytes(s.mesh.tensor) for _, p in self.graph.stage_pieces(s.granules))
            for s in plan.stages
        ]

    def kv_tokens(self, plan: Plan) -> int:
        """Token slots that fit beside parameters and activations on the fullest stage."""
        places = places_of(plan, self.topology)
        figures = plan_figures(self.graph, plan, places, self._plan_workload(0))
        rooms = []
        for stage, each in zip(plan.stages, figures, strict=True):
            pieces = [self.graph.granules[i] for i in stage.granules]
            slot = sum(piece.kv_bytes(1, stage.mesh.tensor) for piece in pieces)
            rooms.append((each.free_bytes - each.needed_bytes) // slot)
        return max(min(rooms), 0)

    def limits(self, kv_tokens: int) -> ReplicaLimits:
        """Of a replica with so much KV memory."""
        return ReplicaLimits(
            num_pages=kv_tokens // self.page_size + 1,
            page_size=self.page_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_draft_rows=self.max_draft_rows,
        )

    def alone_seconds(self, plan: Plan, workload: Workload) -> np.ndarray:
        """How long each request takes from its arrival to its last token, with nobody else there
        and no speculation."""
        costs, budget = self.costs(plan), self.max_num_batched_tokens
        decoding = {
            k: costs.alone_seconds(1, 1, float(k * 64), float(k * 64))
            for k in {(r.prompt + r.output // 2) // 64 for r in workload}
        }
        prefills: dict[int, float] = {}

        def seconds(request: SimRequest) -> float:
            prefill = prefills.get(request.prompt)
            if prefill is None:
                prefill = prefills[request.prompt] = _prefill(costs, request.prompt, budget)
            middle = (request.prompt + request.output // 2) // 64
            return prefill + (request.output - 1) * decoding[middle]

        return np.array([seconds(request) for request in workload])


def _prefill(costs: StageCosts, prompt: int, budget: int) -> float:
    total = 0.0
    for start in range(0, prompt, budget):
        count = min(budget, prompt - start)
        pairs = count * (2 * start + count + 1) / 2
        total += costs.alone_seconds(count, start + count == prompt, pairs, float(start + count))
    return total


def named_setup(
    model: str,
    gpu: str = "a100-80gb",
    *,
    granules: int = 32,
    link: Link = NETWORK,
    max_devices: int = 82,
    **fields: Any,
) -> SimSetup:
    """A model and a device by their names in `fjx.sim.hardware`.

    Args:
        model: Of `MODELS`.
        gpu: Of `GPUS`.
        granules: Into which the model is cut, of equal depth.
        link: Between stages.
        max_devices: That plans may use.
        fields: Further ones of `SimSetup`.
    """
    sizes, device = MODELS[model], GPUS[gpu]
    figures = device.figures()
    rows = int(fields.get("max_num_seqs", SimSetup.max_num_seqs))
    graph = analytic_graph(
        sizes, [LAYERS[model] // granules] * granules, row_buckets(rows), figures, context=256
    )
    return SimSetup(
        sizes=sizes,
        graph=graph,
        device=figures,
        memory_bytes=int(device.memory_bytes * (1 - _RESERVED)),
        link=link,
        max_devices=max_devices,
        **fields,
    )
