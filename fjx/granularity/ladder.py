"""The ladder: the plans among which the granularity policy chooses, with their figures."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fjx.errors import MemoryFitError, UserError
from fjx.granularity.observation import ORDINARY_CV, check_numbers
from fjx.sharding.costs.difference import difference
from fjx.sharding.costs.figures import Place, StageFigures, Workload, check_memory, plan_figures
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.costs.timeline import round_seconds
from fjx.sharding.plan.plan import Deployment, Device, Plan
from fjx.sharding.planner.assign import places_of
from fjx.sharding.topology.topology import UNKNOWN_MEMORY, Topology
from fjx.wording import listed

BURSTY_CV = 3.0
"""FlexPipe: above this coefficient of variation, let the stages grow with its square root
(arXiv:2510.11938, section 3.3)."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A plan with its figures, modelled or profiled.

    Raises:
        UserError: a figure is not a finite number above zero; the message names it.
    """

    name: str
    deployment: Deployment
    tokens_per_second: float
    """Throughput: rows of full steps a second, of all replicas. A row is a token of a prompt or of
    an output."""
    latency_seconds: float
    """From the first stage to the last for one microbatch alone, transfers included."""
    kv_tokens: int
    """Token slots of KV memory, of all replicas."""
    devices: int
    """How many it holds."""
    idle_latency_seconds: float | None = None
    """Likewise for a microbatch of one row: the time for a token where nobody else is served. None:
    not known, and taken for `latency_seconds`."""
    best_cv: float = ORDINARY_CV
    """The coefficient of variation of arrivals that suits it best. Only `FlexPipeRungScorer` reads
    it."""

    def __post_init__(self) -> None:
        figures = ("tokens_per_second", "latency_seconds")
        check_numbers(f"rung {self.name!r}", self, figures, above=True)
        check_numbers(f"rung {self.name!r}", self, ("kv_tokens", "devices"), least=1)
        check_numbers(f"rung {self.name!r}", self, ("best_cv",))
        if self.idle_latency_seconds is not None:
            check_numbers(f"rung {self.name!r}", self, ("idle_latency_seconds",), above=True)


@dataclass(frozen=True)
class Ladder:
    """Rungs from the coarsest to the finest, and what it takes to go from one to another.

    Raises:
        UserError: there are no rungs, names repeat, a rung holds fewer devices than the one before,
            or the table of bytes lacks a pair.
    """

    rungs: tuple[Rung, ...]
    """By the devices that they hold, fewest first."""
    switch_bytes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Bytes that the change from one rung to another moves, for each pair of names. Empty: not
    known, and counted as none."""

    def __post_init__(self) -> None:
        if not self.rungs:
            raise UserError("a ladder needs at least one rung")
        names = [rung.name for rung in self.rungs]
        repeated = [name for name, number in Counter(names).items() if number > 1]
        if repeated:
            raise UserError(f"rungs have names of their own, but {listed(repeated)} is repeated")
        devices = [rung.devices for rung in self.rungs]
        if devices != sorted(devices):
            raise UserError(
                f"a ladder begins with its coarsest rung, but the rungs {listed(names)} hold "
                f"{listed(devices)} devices; sort them"
            )
        pairs = {(a, b) for a in names for b in names if a != b}
        if self.switch_bytes and set(self.switch_bytes) != pairs:
            wrong = sorted(pairs.symmetric_difference(self.switch_bytes))
            raise UserError(
                f"switch_bytes must have each pair of two rungs and no other; see {wrong[0]}"
            )

    def __contains__(self, name: object) -> bool:
        return any(rung.name == name for rung in self.rungs)

    def position(self, name: str) -> int:
        """Index of a rung: 0 is the coarsest.

        Raises:
            UserError: there is none of that name.
        """
        names = [rung.name for rung in self.rungs]
        if name not in names:
            raise UserError(f"the ladder has no rung {name!r}; it has {listed(names)}")
        return names.index(name)

    def rung(self, name: str) -> Rung:
        """The rung of that name.

        Raises:
            UserError: there is none.
        """
        return self.rungs[self.position(name)]

    def bytes_between(self, source: str, target: str) -> int:
        """What the change from one rung to another moves."""
        return self.switch_bytes.get((source, target), 0)


def ladder_from_graph(
    graph: GranuleGraph,
    deployments: Mapping[str, Deployment],
    workload: Workload,
    topology: Topology,
) -> Ladder:
    """Model the figures of a ladder's rungs.

    Throughput is that of full steps: each microbatch has ``workload.rows`` rows. Where stages or
    replicas share a device, it is no more than the busiest device can do.

    Args:
        graph: The costs of the model's pieces.
        deployments: The plans by name, in any order.
        workload: Rows of a microbatch; the KV room that each replica must have, which is also what
            it has where the machine does not tell its memory; the token slots in use in each
            replica, for the bytes of a change.
        topology: The machine, with the memory that is free without the model.

    Raises:
        MemoryFitError: a plan does not fit.
        MeshError: a plan is not of this model or machine.
        UserError: a figure cannot be modelled, such as the throughput of a model without costs.
    """
    coarsest = min((_stages(each) for each in deployments.values()), default=1)
    rungs = [
        _rung(name, deployment, graph, workload, topology, coarsest)
        for name, deployment in deployments.items()
    ]
    rungs.sort(key=lambda rung: (rung.devices, _stages(rung.deployment), rung.name))
    moved = {
        (a.name, b.name): difference(
            a.deployment, b.deployment, graph, workload.copied_tokens
        ).total_bytes
        for a in rungs
        for b in rungs
        if a is not b
    }
    return Ladder(tuple(rungs), moved)


def best_cv(stages: int, coarsest: int) -> float:
    """FlexPipe's rule, read backwards: the coefficient of variation of arrivals that suits a
    number of stages.

    The rule lets the number of stages grow with the square root of the coefficient of variation
    where that is above 3, and leaves its factor open. Here the coarsest plan is right up to 3, so
    S stages suit 3 (S / coarsest) ** 2. The coarsest itself gets the middle of the range that the
    rule says nothing about.

    Args:
        stages: Of the plan.
        coarsest: Stages of the coarsest plan.
    """
    return BURSTY_CV * (stages / coarsest) ** 2 if stages > coarsest else ORDINARY_CV


def _rung(
    name: str,
    deployment: Deployment,
    graph: GranuleGraph,
    workload: Workload,
    topology: Topology,
    coarsest: int,
) -> Rung:
    rate, latency, idle, kv_tokens = 0.0, 0.0, 0.0, 0
    work: dict[Device, float] = defaultdict(float)
    for plan in deployment.replicas:
        places = places_of(plan, topology)
        try:
            check_memory(graph, plan, places, workload)
        except MemoryFitError as error:
            raise MemoryFitError(f"rung {name!r}: {error}") from None
        figures = plan_figures(graph, plan, places, workload)
        period = round_seconds(figures, plan.microbatches) or math.ulp(0.0)
        rate += plan.microbatches * workload.rows / period
        latency = max(latency, sum(stage.seconds for stage in figures))
        alone = plan_figures(graph, plan, places, replace(workload, rows=1))
        idle = max(idle, sum(stage.seconds for stage in alone))
        kv_tokens += _kv_room(graph, plan, places, figures, workload)
        for stage, each in zip(plan.stages, figures, strict=True):
            for device in stage.mesh.devices:
                work[device] += plan.microbatches * each.compute_seconds / period
    return Rung(
        name=name,
        deployment=deployment,
        tokens_per_second=rate / max(1.0, *work.values()),
        latency_seconds=latency,
        kv_tokens=kv_tokens,
        devices=len(deployment.devices),
        idle_latency_seconds=idle or None,
        best_cv=best_cv(_stages(deployment), coarsest),
    )


def _kv_room(
    graph: GranuleGraph,
    plan: Plan,
    places: Sequence[Place],
    figures: Sequence[StageFigures],
    workload: Workload,
) -> int:
    """Token slots that fit beside parameters and activations on every stage."""
    rooms = []
    for stage, place, each in zip(plan.stages, places, figures, strict=True):
        pieces = [piece for _, piece in graph.stage_pieces(stage.granules)]
        slot = sum(piece.kv_bytes(1, place.mesh.tensor) for piece in pieces)
        if slot and each.free_bytes < UNKNOWN_MEMORY:
            free = each.free_bytes - each.parameter_bytes - each.activation_bytes
            rooms.append(free // slot)
    return min(rooms, default=workload.kv_tokens)


def _stages(deployment: Deployment) -> int:
    return max(plan.granularity for plan in deployment.replicas)
