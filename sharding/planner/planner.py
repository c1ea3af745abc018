"""From a mesh, a machine and a model to a deployment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fjx.errors import MemoryFitError, MeshError, error_at
from fjx.sharding.costs.figures import Place, Workload, check_memory
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.partition.needs import PlanNeed, need_of
from fjx.sharding.partition.partition import partition
from fjx.sharding.placement.placement import place
from fjx.sharding.plan.plan import Deployment, Device, Plan, Stage, check_degree
from fjx.sharding.planner.assign import assign_devices, places_of
from fjx.sharding.planner.mesh_file import MeshFile, StageSpec
from fjx.sharding.topology.fleet import Fleet
from fjx.sharding.topology.topology import DeviceState, HostCopy, Topology
from fjx.wording import counted, listed


def plan_mesh(
    mesh: MeshFile,
    topology: Topology,
    graph: GranuleGraph,
    workload: Workload,
    *,
    current: Deployment | None = None,
    tolerance: float = 0.0,
    fragments: bool = False,
) -> Deployment:
    """The deployment that a mesh file describes, on this machine and for this model.

    Args:
        mesh: From `load_mesh`.
        topology: The machine.
        graph: The costs of the model's pieces.
        workload: What the plan must be good for.
        current: What serves now; see `partition`.
        tolerance: As in `partition`.
        fragments: Whether stages whose devices the file leaves open get those that `place` finds,
            by links and by what is free; by default the next ones.

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
    for index, places in enumerate(_places(mesh, topology, graph, workload, current, fragments)):
        serving = _replica(current, index)
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
    """A mesh file of ``stages`` equal stages on the next free devices; the planner finds the cuts.

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


def plan_auto(
    topology: Topology, graph: GranuleGraph, workload: Workload, *, fragments: bool = False
) -> Deployment:
    """The plan with the fewest stages of one device each whose memory holds the model.

    Few stages mean few hops, and devices left for later. ``fragments``: see `plan_mesh`.

    Raises:
        MemoryFitError: the model does not fit on all devices of the machine's first platform.
    """
    most = min(len(topology.select(None, None)), len(graph.granules))
    for stages in range(1, most):
        try:
            return plan_mesh(even_mesh(stages), topology, graph, workload, fragments=fragments)
        except MemoryFitError:
            continue
    return plan_mesh(even_mesh(most), topology, graph, workload, fragments=fragments)


def need_of_mesh(mesh: MeshFile, graph: GranuleGraph, workload: Workload) -> PlanNeed:
    """What the stages of one of a mesh's replicas need, cut for devices alike, wherever they are.

    Raises:
        MeshError: the mesh does not suit the model; the message names file and line.
    """
    anywhere = replace(
        mesh,
        replicas=1,
        stages=tuple(replace(s, indices=None, host=None, platform=None) for s in mesh.stages),
    )
    number = sum(stage.tensor for stage in mesh.stages)
    machine = Topology(tuple(DeviceState(Device("any", "any", i)) for i in range(number)))
    return need_of(graph, plan_mesh(anywhere, machine, graph, workload).replicas[0], workload)


def _places(
    mesh: MeshFile,
    topology: Topology,
    graph: GranuleGraph,
    workload: Workload,
    current: Deployment | None,
    fragments: bool,
) -> Sequence[tuple[Place, ...]]:
    """The places of every replica's stages."""
    if not (fragments and _is_open(mesh)):
        return assign_devices(mesh, topology)
    try:
        return _fragments(mesh, topology, graph, workload, current)
    except MemoryFitError as error:
        raise MemoryFitError(f"{mesh.label}: {error}") from None


def _is_open(mesh: MeshFile) -> bool:
    """Whether it leaves the devices of all stages open."""
    return not mesh.shared_devices and all(
        stage.indices is None
        and stage.host is None
        and stage.link is None
        and stage.platform == mesh.stages[0].platform
        for stage in mesh.stages
    )


def _fragments(
    mesh: MeshFile,
    topology: Topology,
    graph: GranuleGraph,
    workload: Workload,
    current: Deployment | None,
) -> Sequence[tuple[Place, ...]]:
    """The places of every replica's stages, each replica on devices that those before it left."""
    need, platform = need_of_mesh(mesh, graph, workload), mesh.stages[0].platform
    if len(topology.select(platform, None)) < need.devices * mesh.replicas:
        return assign_devices(mesh, topology)  # its errors say what is missing
    replicas: list[tuple[Place, ...]] = []
    for index in range(mesh.replicas):
        taken = {device for places in replicas for at in places for device in at.mesh.devices}
        left = replace(
            topology,
            devices=tuple(state for state in topology.devices if state.device not in taken),
            copies=topology.copies + _held(graph.model, _replica(current, index)),
        )
        placement = place(Fleet.of(left, platform=platform), [need])
        replicas.append(places_of(placement.plan, topology))
    return replicas


def _held(model: str, serving: Plan | None) -> tuple[HostCopy, ...]:
    """What the hosts of a plan need not load again."""
    return tuple(
        HostCopy(host=device.host, model=model, granules=frozenset(stage.granules))
        for stage in (() if serving is None else serving.stages)
        for device in stage.mesh.devices
    )


def _replica(deployment: Deployment | None, index: int) -> Plan | None:
    if deployment is None or index >= len(deployment.replicas):
        return None
    return deployment.replicas[index]


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
