"""From a mesh, a machine and a model to a deployment."""

from __future__ import annotations

from collections.abc import Sequence

from fjx.sharding.assign import assign_devices
from fjx.sharding.errors import MemoryFitError, MeshError, counted, error_at, listed
from fjx.sharding.figures import Place, Workload, check_memory
from fjx.sharding.graph import GranuleGraph
from fjx.sharding.mesh_file import MeshFile, StageSpec
from fjx.sharding.partition import partition
from fjx.sharding.plan import Deployment, Plan, Stage, check_degree
from fjx.sharding.topology import Topology


def plan_mesh(
    mesh: MeshFile,
    topology: Topology,
    graph: GranuleGraph,
    workload: Workload,
    *,
    current: Deployment | None = None,
    tolerance: float = 0.0,
) -> Deployment:
    """The deployment that a mesh file describes, on this machine and for this model.

    Args:
        mesh: From `load_mesh`.
        topology: The machine.
        graph: The costs of the model's pieces.
        workload: What the plan must be good for.
        current: What serves now; see `partition`.
        tolerance: As in `partition`.

    Raises:
        MemoryFitError: the model does not fit.
        MeshError: the mesh does not suit the machine or the model; the message names file and
            line.
    """
    for number, stage in enumerate(mesh.stages, start=1):
        try:
            check_degree(stage.tensor, dict(graph.split_sizes), f"stage {number}: ")
        except MeshError as error:
            raise error_at(mesh.label, stage.line, str(error)) from None
    cuts = _explicit_cuts(mesh, graph)
    plans = []
    for index, places in enumerate(assign_devices(mesh, topology)):
        serving = None
        if current is not None and index < len(current.replicas):
            serving = current.replicas[index]
        try:
            if cuts is None:
                plan = partition(
                    graph,
                    places,
                    workload,
                    current=serving,
                    tolerance=tolerance,
                    microbatches=mesh.microbatches,
                    shared_devices=mesh.shared_devices,
                )
            else:
                plan = _cut_plan(mesh, graph, places, cuts, workload)
        except MemoryFitError as error:
            raise MemoryFitError(f"{mesh.label}: {error}") from None
        except MeshError as error:
            raise error_at(mesh.label, None, str(error)) from None
        plans.append(plan)
    return Deployment(tuple(plans))


def even_mesh(stages: int, *, tensor: int = 1, replicas: int = 1) -> MeshFile:
    """The mesh of so many stages alike, on the next free devices; the planner finds the cuts.

    Raises:
        MeshError: a number is less than 1.
    """
    for name, number in (("stages", stages), ("tensor", tensor), ("replicas", replicas)):
        if number < 1:
            raise MeshError(f"{name} must be at least 1, got {number}")
    return MeshFile(
        stages=(StageSpec(tensor=tensor),) * stages,
        replicas=replicas,
        microbatches=stages,
        label=f"a mesh of {counted(stages, 'stage')}",
    )


def plan_auto(topology: Topology, graph: GranuleGraph, workload: Workload) -> Deployment:
    """The plan with the fewest stages of one device each whose memory holds the model.

    Few stages mean few hops, and devices left for later.

    Raises:
        MemoryFitError: the model does not fit on all devices of the machine's first platform.
    """
    most = min(len(topology.select(None, None)), len(graph.granules))
    for stages in range(1, most):
        try:
            return plan_mesh(even_mesh(stages), topology, graph, workload)
        except MemoryFitError:
            continue
    return plan_mesh(even_mesh(most), topology, graph, workload)


def _explicit_cuts(mesh: MeshFile, graph: GranuleGraph) -> tuple[range, ...] | None:
    """The granules of each stage, where the mesh file gives layers."""
    boundaries, begin = graph.boundaries, 0
    cuts = []
    for number, stage in enumerate(mesh.stages, start=1):
        if stage.layers is None:
            return None
        end = begin + stage.layers
        if end not in boundaries and end <= graph.num_layers:
            below = max(layer for layer in boundaries if layer < end)
            above = min(layer for layer in boundaries if layer > end)
            fitting = [layer - begin for layer in (below, above) if layer > begin]
            raise error_at(
                mesh.label,
                stage.line,
                f"stage {number} ends at layer {end}, within a granule; {graph.model} can be cut "
                f"at layers {listed(boundaries[1:-1])}. Use layers = {listed(fitting, last='or')}"
                " here, or smaller granules",
            )
        if end <= graph.num_layers:
            cuts.append(range(boundaries.index(begin), boundaries.index(end)))
        begin = end
    if begin != graph.num_layers:
        raise error_at(
            mesh.label,
            mesh.stages[-1].line,
            f"the stages have {counted(begin, 'layer')}, {graph.model} has {graph.num_layers}; "
            "make their sum equal, or leave layers out of every stage",
        )
    return tuple(cuts)


def _cut_plan(
    mesh: MeshFile,
    graph: GranuleGraph,
    places: Sequence[Place],
    cuts: Sequence[range],
    workload: Workload,
) -> Plan:
    stages = (Stage(cut, place.mesh) for cut, place in zip(cuts, places, strict=True))
    plan = Plan(tuple(stages), mesh.microbatches, mesh.shared_devices)
    plan.check_model(len(graph.granules), dict(graph.split_sizes))
    check_memory(graph, plan, places, workload)
    return plan
