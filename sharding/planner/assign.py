"""Which devices of a machine the stages of a mesh file get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from fjx.errors import MeshError, error_at
from fjx.sharding.costs.figures import Place
from fjx.sharding.plan.plan import Device, Mesh, Plan
from fjx.sharding.planner.mesh_file import MeshFile, StageSpec
from fjx.sharding.topology.topology import INSTANT, UNKNOWN_MEMORY, DeviceState, Topology
from fjx.wording import counted, listed


def assign_devices(mesh: MeshFile, topology: Topology) -> tuple[tuple[Place, ...], ...]:
    """Choose the devices of every replica's stages.

    Listed devices are taken as they are. The others are the first free ones of their platform and
    host, replica by replica and stage by stage. A device that several stages share gives each an
    equal part of its free memory.

    Returns:
        For each replica, the places of its stages.

    Raises:
        MeshError: the machine has too few devices, or stages share one without leave; the message
            names file and line.
    """
    taken = {d for r in range(mesh.replicas) for s in mesh.stages for d in _listed(s, r, topology)}
    users: dict[Device, tuple[int, int]] = {}
    replicas = []
    for replica in range(mesh.replicas):
        places: list[Place] = []
        for number, stage in enumerate(mesh.stages, start=1):
            states = _states(mesh, stage, number, replica, topology, taken)
            for state in states:
                _refuse_shared(mesh, stage, (replica + 1, number), state.device, users)
            places.append(_place(stage, states, places[-1] if places else None, topology))
        replicas.append(tuple(places))
    return _divide_memory(replicas)


def places_of(plan: Plan, topology: Topology) -> tuple[Place, ...]:
    """The places of a plan's stages.

    Raises:
        MeshError: the plan has devices that are not in the topology.
    """
    places: list[Place] = []
    for stage in plan.stages:
        states = [topology.state(device) for device in stage.mesh.devices]
        absent = [d for d, s in zip(stage.mesh.devices, states, strict=True) if s is None]
        if absent:
            known = [state.device for state in topology.devices]
            raise MeshError(
                f"the plan uses {listed(absent)}, and this machine has {listed(known)}; "
                "make a plan of these"
            )
        present = [state for state in states if state is not None]
        spec = StageSpec(tensor=stage.mesh.tensor)
        place = _place(spec, present, places[-1] if places else None, topology)
        places.append(replace(place, mesh=stage.mesh))
    return _divide_memory([tuple(places)])[0]


def _listed(stage: StageSpec, replica: int, topology: Topology) -> list[Device]:
    """The listed devices of a stage that the machine has."""
    if stage.indices is None:
        return []
    here = topology.select(stage.platform, stage.host)
    return [here[i].device for i in stage.indices[replica] if i < len(here)]


def _states(
    mesh: MeshFile,
    stage: StageSpec,
    number: int,
    replica: int,
    topology: Topology,
    taken: set[Device],
) -> list[DeviceState]:
    here = topology.select(stage.platform, stage.host)
    platform = stage.platform or topology.platform
    kind = f"platform {platform}" + (f" on host {stage.host}" if stage.host else "")
    which = f"stage {number}" + (f" of replica {replica + 1}" if mesh.replicas > 1 else "")
    mend = "use a mesh of fewer devices, such as --mesh single"
    if platform == "cpu":
        needed = mesh.devices_needed("cpu", default=topology.platform == "cpu")
        mend += f", or set jax_num_cpu_devices to {needed}"
    if stage.indices is not None:
        absent = [index for index in stage.indices[replica] if index >= len(here)]
        if absent:
            raise error_at(
                mesh.label,
                stage.line,
                f"{which} uses device {listed(absent)} of {kind}, this machine has {len(here)} "
                f"({f'0 to {len(here) - 1}' if here else 'none'}); {mend}",
            )
        return [here[index] for index in stage.indices[replica]]
    free = [state for state in here if state.device not in taken]
    if len(free) < stage.tensor:
        are = "is" if len(free) == 1 else "are"
        left = f", of which {len(free)} {are} free" if len(free) < len(here) else ""
        raise error_at(
            mesh.label,
            stage.line,
            f"{which} needs {counted(stage.tensor, 'device')} of {kind}, this machine has "
            f"{len(here)}{left}; {mend}",
        )
    taken.update(state.device for state in free[: stage.tensor])
    return free[: stage.tensor]


def _refuse_shared(
    mesh: MeshFile,
    stage: StageSpec,
    user: tuple[int, int],
    device: Device,
    users: dict[Device, tuple[int, int]],
) -> None:
    other = users.setdefault(device, user)
    if other == user or mesh.shared_devices:
        return
    of = [f" of replica {replica}" if mesh.replicas > 1 else "" for replica, _ in (user, other)]
    raise error_at(
        mesh.label,
        stage.line,
        f"stage {user[1]}{of[0]} uses {device}, which stage {other[1]}{of[1]} has; list other "
        "devices, or allow it by shared_devices = true",
    )


def _place(
    stage: StageSpec, states: Sequence[DeviceState], before: Place | None, topology: Topology
) -> Place:
    mesh = Mesh(tuple(state.device for state in states), (("tensor", stage.tensor),))
    link = INSTANT
    if before is not None:
        link = stage.link or topology.link(before.mesh, mesh)
    return Place(
        mesh=mesh,
        free_bytes=min(state.free_bytes for state in states),
        speed=min(state.speed for state in states),
        link=link,
    )


def _divide_memory(replicas: Sequence[tuple[Place, ...]]) -> tuple[tuple[Place, ...], ...]:
    """Give the stages on a shared device an equal part of its memory each."""
    users = Counter(d for places in replicas for place in places for d in place.mesh.devices)

    def divided(place: Place) -> Place:
        most = max(users[device] for device in place.mesh.devices)
        if most == 1 or place.free_bytes == UNKNOWN_MEMORY:
            return place
        return replace(place, free_bytes=place.free_bytes // most)

    return tuple(tuple(divided(place) for place in places) for places in replicas)
