"""Which devices the stages of a model get, where devices are fragments: partly used by others.

The objective, in strict order:

1. *Pace*: the number of devices times the slowest stage, whose time is its pass plus the time to
   receive its input over the link from the stage before. Between places for one plan that is the
   slowest stage; between plans of more or fewer stages it is the devices' time for a microbatch.
   All that are at most ``tolerance`` slower than the fastest count as equal.
2. *Hops*: what a microbatch spends between stages, which is a part of every request's and every
   token's time. All that are longer than the least by at most ``hop_tolerance`` of a microbatch's
   pass count as equal.
3. The scorer's price: by default the memory left stranded, then the parameters to load cold.

FlexPipe (arXiv:2510.11938, sections 6.2 and 7) places by a weighted sum, and does not say how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fjx.errors import MemoryFitError, MeshError
from fjx.sharding.partition.needs import PlanNeed
from fjx.sharding.placement.device_scorers import (
    DeviceScorer,
    FragmentScorer,
    cold_bytes,
    demands_of,
)
from fjx.sharding.placement.routes import Router
from fjx.sharding.placement.rows import NEVER, Rows
from fjx.sharding.placement.search import fastest
from fjx.sharding.plan.plan import Mesh, Plan
from fjx.sharding.topology.fleet import Fleet, Floats, Integers
from fjx.sharding.topology.topology import INSTANT, UNKNOWN_MEMORY, Link
from fjx.wording import counted, format_bytes, listed

EFFORT = 1000
"""Assignments that a search solves at most before it makes do with the best so far."""


@dataclass(frozen=True, kw_only=True)
class PlacedStage:
    """Where one stage runs, and what that costs."""

    mesh: Mesh
    compute_seconds: float
    """One pass of a microbatch on the slowest of its devices."""
    link: Link
    """The link from the stage before."""
    transfer_seconds: float
    """Receiving a microbatch over it."""
    cold_bytes: int
    """Parameters, on all of its devices, that their node does not hold in host memory."""

    @property
    def seconds(self) -> float:
        """How long a microbatch occupies the stage."""
        return self.compute_seconds + self.transfer_seconds


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The stages of a plan on devices."""

    need: PlanNeed
    stages: tuple[PlacedStage, ...]
    indices: tuple[tuple[int, ...], ...]
    """For each stage, its devices by their index in the fleet."""
    proven: bool = field(default=False, compare=False)
    """Whether no other placement is better; False: nobody asked, or the search was cut short."""

    @property
    def slowest_seconds(self) -> float:
        """The slowest stage."""
        return max(stage.seconds for stage in self.stages)

    @property
    def transfer_seconds(self) -> float:
        """What a microbatch spends between stages."""
        return sum(stage.transfer_seconds for stage in self.stages)

    @property
    def cold_bytes(self) -> int:
        """Parameters that no node holds in host memory where they are wanted."""
        return sum(stage.cold_bytes for stage in self.stages)

    @property
    def plan(self) -> Plan:
        """The plan on these devices."""
        meshes = [stage.mesh for stage in self.stages]
        used = [device for mesh in meshes for device in mesh.devices]
        return self.need.plan(meshes, shared_devices=len(set(used)) < len(used))

    def occupy(self, fleet: Fleet) -> Fleet:
        """The fleet with this placement's memory taken."""
        devices = [device for indices in self.indices for device in indices]
        sizes = [
            stage.needed_bytes
            for stage, indices in zip(self.need.stages, self.indices, strict=True)
            for _ in indices
        ]
        return fleet.occupied(devices, sizes)


class Placer(Protocol):
    """Chooses devices for one of some plans: `place` and the baselines of `placement_baselines`."""

    def __call__(self, fleet: Fleet, candidates: Sequence[PlanNeed]) -> Placement:
        """Place one of the plans.

        Raises:
            MemoryFitError: none fits.
        """


def place(
    fleet: Fleet,
    candidates: Sequence[PlanNeed],
    *,
    scorer: DeviceScorer | None = None,
    tolerance: float = 0.0,
    hop_tolerance: float = 0.0,
    stages_per_device: int = 1,
    effort: int = EFFORT,
) -> Placement:
    """Choose the devices for the best of some plans of one model.

    Args:
        fleet: The devices, and what is free.
        candidates: The same model in several granularities, or just one.
        scorer: What a device costs; by default `FragmentScorer`, whose demands are the stages of
            the candidates.
        tolerance: How much slower than the fastest a placement may be for shorter hops or a better
            price: 0.05 is 5 %; infinity leaves the decision to them.
        hop_tolerance: How much longer than the least a microbatch may spend between stages for a
            better price, as a share of its pass through the fastest plan on devices of speed 1:
            0.01 is 1 % of it; infinity leaves the decision to the price.
        stages_per_device: How many stages a device may get. Above 1, each device counts as so many
            that have an equal part of its memory and speed.
        effort: Most assignments that one search solves: a bound on time that is the same on every
            machine.

    Returns:
        The best placement; of equal ones, that of the candidate which comes first.

    Raises:
        MemoryFitError: no candidate fits.
        MeshError: there are no candidates, or an argument is out of its range.
    """
    _check(candidates, tolerance, hop_tolerance, stages_per_device)
    scorer = scorer or FragmentScorer(demands_of(candidates))
    parts = fleet.divided(stages_per_device)
    rows = [Rows.of(parts, need) for need in candidates]
    bounds, proven = _bounds(rows, tolerance, effort)
    routers: dict[int, tuple[Router, Floats]] = {}
    for index, (each, bound) in enumerate(zip(rows, bounds, strict=True)):
        if bound is not None:
            price = scorer.price(parts, candidates[index])[list(each.stages)].astype(np.float64)
            routers[index] = Router(each, bound.limit, price, effort, bound.fastest), price
    most = NEVER
    if hop_tolerance < float("inf"):
        founds = [router.shortest() for router, _ in routers.values()]
        least = min((f.value for f in founds if f.devices is not None), default=0)
        most = round(least + hop_tolerance * _pass_seconds(candidates) * 1e12)
        proven &= all(found.proven for found in founds)
    best: tuple[float, int, Integers] | None = None
    for index, (router, price) in routers.items():
        found = router.cheapest(most)
        proven &= found.proven
        if found.devices is None:
            continue
        value = float(price[np.arange(len(found.devices)), found.devices].sum())
        if best is None or value < best[0]:
            best = value, index, found.devices
    if best is None:
        raise fit_error(fleet, candidates, proven=proven)
    _, index, devices = best
    return placement_on(
        fleet,
        candidates[index],
        devices // stages_per_device,
        parts=stages_per_device,
        proven=proven,
    )


def place_all(
    fleet: Fleet, models: Sequence[Sequence[PlanNeed]], placer: Placer = place
) -> tuple[Placement, ...]:
    """Place several models, one after the other in this order, each in what the others left.

    Args:
        fleet: The devices, and what is free.
        models: The candidates of each model.
        placer: How one model is placed.

    Raises:
        MemoryFitError: one does not fit; the message says which.
    """
    placements = []
    for candidates in models:
        placement = placer(fleet, candidates)
        fleet = placement.occupy(fleet)
        placements.append(placement)
    return tuple(placements)


def placement_on(
    fleet: Fleet,
    need: PlanNeed,
    devices: Sequence[int] | Integers,
    *,
    parts: int = 1,
    proven: bool = False,
) -> Placement:
    """What it is like to have a plan's stages on these devices.

    Args:
        fleet: The devices.
        need: The plan.
        devices: By index in the fleet, stage by stage.
        parts: How many stages share each device's speed.
        proven: Of the placement.
    """
    rows = iter([int(device) for device in devices])
    indices = tuple(tuple(next(rows) for _ in range(s.tensor)) for s in need.stages)
    cold = cold_bytes(fleet, need)
    stages: list[PlacedStage] = []
    for number, (stage, chosen) in enumerate(zip(need.stages, indices, strict=True)):
        keys = tuple(fleet.devices[index] for index in chosen)
        mesh = Mesh(keys, (("tensor", stage.tensor),))
        link = fleet.topology.link(stages[-1].mesh, mesh) if stages else INSTANT
        sent = need.stages[number - 1].sent_bytes if stages else 0
        speed = min(float(fleet.speed[index]) for index in chosen) / parts
        stages.append(
            PlacedStage(
                mesh=mesh,
                compute_seconds=stage.seconds / speed,
                link=link,
                transfer_seconds=link.transfer_seconds(sent) if stages else 0.0,
                cold_bytes=int(sum(cold[number, index] for index in chosen)),
            )
        )
    return Placement(need=need, stages=tuple(stages), indices=indices, proven=proven)


def fit_error(
    fleet: Fleet, candidates: Sequence[PlanNeed], *, proven: bool = True
) -> MemoryFitError:
    """The error for plans that fit nowhere, with the numbers; or that found no place in time."""
    if not proven:
        return MemoryFitError(
            f"no place for {candidates[0].model} was found before the search was cut short; raise "
            "its effort, or use fewer stages"
        )
    wants = [
        f"{counted(len(need.stages), 'stage')} with up to "
        f"{format_bytes(max(stage.needed_bytes for stage in need.stages))} on each of "
        f"{counted(need.devices, 'device')}"
        for need in candidates
    ]
    free = fleet.free_bytes
    largest = "any" if free.max() >= UNKNOWN_MEMORY else format_bytes(int(free.max()))
    known = free[free < UNKNOWN_MEMORY]
    return MemoryFitError(
        f"{candidates[0].model} does not fit on {counted(len(free), 'device')}: it needs "
        f"{listed(wants, last='or')}, and {format_bytes(int(known.sum()))} are free, at most "
        f"{largest} on one device; use more stages, fewer KV tokens, or more devices"
    )


@dataclass(frozen=True)
class _Bound:
    """How long a candidate's slowest row may take."""

    limit: int
    """Picoseconds."""
    fastest: Integers | None = None
    """Devices that keep to it, where they are known."""


def _bounds(
    rows: Sequence[Rows], tolerance: float, effort: int
) -> tuple[list[_Bound | None], bool]:
    """The bound of each candidate (None: it fits nowhere, or is too slow), and whether they are
    proven."""
    if tolerance == float("inf"):
        return [_Bound(NEVER - 1)] * len(rows), True
    founds = [fastest(each, effort) for each in rows]
    counts = [len(each.stages) for each in rows]
    paces = [
        count * found.value
        for count, found in zip(counts, founds, strict=True)
        if found.devices is not None
    ]
    most = min(paces, default=0.0) * (1 + tolerance)
    bounds = [
        _Bound(int(most / count), found.devices)
        if found.devices is not None and count * found.value <= most
        else None
        for count, found in zip(counts, founds, strict=True)
    ]
    return bounds, all(found.proven for found in founds)


def _pass_seconds(candidates: Sequence[PlanNeed]) -> float:
    """A microbatch's pass through the fastest plan on devices of speed 1, without hops."""
    return min(sum(stage.seconds for stage in need.stages) for need in candidates)


def _check(
    candidates: Sequence[PlanNeed], tolerance: float, hop_tolerance: float, stages_per_device: int
) -> None:
    problems: list[Any] = []
    if not candidates:
        problems.append("there is no plan to place; give at least one candidate")
    for name, value in (("tolerance", tolerance), ("hop_tolerance", hop_tolerance)):
        if not value >= 0:
            problems.append(f"{name} must be at least 0, got {value}")
    if stages_per_device < 1:
        problems.append(f"stages_per_device must be at least 1, got {stages_per_device}")
    if stages_per_device > 1 and any(s.tensor > 1 for need in candidates for s in need.stages):
        problems.append(
            "stages that share devices cannot be split over several; use stages_per_device = 1 or "
            "a tensor degree of 1"
        )
    if problems:
        raise MeshError(problems[0])
