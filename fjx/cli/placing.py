"""What ``fjx place`` works with: the cluster, the plans to choose from, and what is chosen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

from fjx.cli.planning import default_kv_tokens, read_costs, read_machine
from fjx.plots.placement import placement_svg
from fjx.sharding.costs.figures import Workload
from fjx.sharding.partition.needs import PlanNeed, granularities
from fjx.sharding.placement.device_scorers import (
    DeviceScorer,
    FlexPipeDeviceScorer,
    FragmentScorer,
    demands_of,
)
from fjx.sharding.placement.placement import Placement, place, place_all
from fjx.sharding.placement.placement_table import placement_table
from fjx.sharding.plan.plan import Deployment
from fjx.sharding.plan.plan_json import deployment_to_json
from fjx.sharding.planner.mesh_file import load_mesh
from fjx.sharding.planner.planner import need_of_mesh
from fjx.sharding.topology.fleet import Fleet


class Placing:
    """The placement that the options ask for.

    Raises:
        UserError: the options contradict each other, a file or the model cannot be read, or the
            model does not fit.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        mesh = None if arguments.mesh is None else load_mesh(arguments.mesh)
        topology = read_machine(arguments, [] if mesh is None else [mesh])
        graph = read_costs(arguments, topology.platform)
        tokens = arguments.kv_tokens or default_kv_tokens(graph)
        workload = Workload(rows=arguments.rows, kv_tokens=tokens)
        if mesh is None:
            counts = arguments.stages or _doublings(len(graph.granules))
            plans = granularities(graph, counts, workload, tensor=arguments.tensor or 1)
        else:
            plans = (need_of_mesh(mesh, graph, workload),)
        self._fleet = Fleet.of(topology)
        self._demands = demands_of(plans)
        scorer: DeviceScorer = FragmentScorer(self._demands)
        if arguments.scorer == FlexPipeDeviceScorer.name:
            scorer = FlexPipeDeviceScorer()

        def placed(fleet: Fleet, candidates: Sequence[PlanNeed]) -> Placement:
            return place(
                fleet,
                candidates,
                scorer=scorer,
                tolerance=arguments.tolerance,
                hop_tolerance=arguments.hop_tolerance,
                stages_per_device=arguments.stages_per_device,
            )

        replicas = 1 if mesh is None else mesh.replicas
        self._placements = place_all(self._fleet, [plans] * replicas, placed)

    def table(self) -> str:
        """The placement as text."""
        return placement_table(self._fleet, self._placements, self._demands)

    def picture(self) -> str:
        """The placement as SVG."""
        return placement_svg(self._fleet, self._placements, self._demands)

    def as_json(self) -> str:
        """The plans as `POST /v1/plan` takes them."""
        plans = [placement.plan for placement in self._placements]
        used = [device for plan in plans for device in plan.devices]
        if len(set(used)) < len(used):
            plans = [replace(plan, shared_devices=True) for plan in plans]
        return json.dumps(deployment_to_json(Deployment(tuple(plans))))


def _doublings(granules: int) -> list[int]:
    """1, 2, 4 and so on."""
    return [1 << power for power in range(granules.bit_length()) if 1 << power <= granules]
