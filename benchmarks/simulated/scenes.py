"""What is served in the cluster benchmark: models, arrivals, and how each system is set up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fjx.bench.traces import TraceEntry
from fjx.granularity.ladder import Ladder
from fjx.granularity.policy import PolicyConfig
from fjx.granularity.rung_scorers import ServiceScorer
from fjx.sharding.placement.placement import Placer, place
from fjx.sharding.plan.plan import Deployment
from fjx.sharding.topology.topology import Link
from fjx.sim.hardware import NETWORK
from fjx.sim.run import Result, simulate
from fjx.sim.setup import SimSetup, named_setup
from fjx.sim.sim_cluster import SimCluster, Tenancy, flexpipe_hosts
from fjx.sim.systems import Elastic, ScaleOut, Static, System
from fjx.sim.workload import (
    Workload,
    gamma_arrivals,
    servegen_span,
    surge_arrivals,
    with_lengths,
)

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
DAY = DATA / "traces" / "servegen_m-small.tar.xz"
RATE = 20.0
DAY_REQUESTS = 3
"""Times the requests of other workloads: 24 h in half an hour, 48 times as fast."""
_DAY_BEGINS = 2 * 86400.0
"""Seconds of the archive: its third day."""
DAY_SECONDS = 86400.0

Shape = tuple[int, int, int]
"""Stages, replicas, and the tensor degree of every stage."""
COUNTS = (1, 2, 3, 4, 6, 8)
"""Replicas on ladders: up to 32 devices."""
ALWAYS_ON = 0.75
"""FlexPipe: an always-on pool is 75 % of the historic peak (arXiv:2510.11938, section 2)."""

POLICY = PolicyConfig(copy_bytes_per_second=50e9, pause_seconds=0.05)
"""The engine's defaults, but for what a change costs on this cluster."""
EAGER = replace(
    POLICY,
    finer_hold_seconds=0,
    hold_observations=1,
    coarser_hold_seconds=15,
    cooldown_seconds=15,
    scorer=ServiceScorer(ttft_objective_seconds=0.5, drain_seconds=2),
)
"""Less patience, and an objective for the first token that suits answers of a second."""
PACE = 1.25
"""Time from token to token where it is an objective, in times that of one row on the coarsest
rung."""


def shape_name(shape: Shape) -> str:
    """As in tables: stages x replicas, and the tensor degree where there is one."""
    stages, replicas, tensor = shape
    return f"{stages}x{replicas}" + (f"t{tensor}" if tensor > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A model with the lengths of its requests, and the plans that suit it."""

    model: str
    prompt_scale: float
    output_scale: float
    stages: int
    """Of the coarsest pipeline."""
    others: tuple[Shape, ...]
    """Deployments of more stages, static ones and for a ladder."""

    @property
    def replicas(self) -> tuple[Shape, ...]:
        """Replicas of the coarsest pipeline."""
        return tuple((self.stages, count, 1) for count in COUNTS)

    @property
    def sharded(self) -> tuple[Shape, ...]:
        """Replicas of stages that both devices of a host share."""
        return tuple((max(self.stages // 2, 1), count, 2) for count in COUNTS)


SCENES = (
    # So that a request alone takes 0.7 s and four stages at CV 1 take about the 1.35 s that the
    # paper's figures imply for AlpaServe; at full lengths 66 billion parameters take 18 s.
    Scene(
        model="opt-66b",
        prompt_scale=1 / 16,
        output_scale=1 / 24,
        stages=4,
        others=((8, 1, 1), (8, 2, 1), (16, 2, 1), (8, 4, 1), (16, 1, 1), (32, 1, 1)),
    ),
    Scene(
        model="llama-2-7b",
        prompt_scale=1 / 4,
        output_scale=1 / 4,
        stages=1,
        others=((2, 1, 1), (4, 1, 1), (4, 2, 1), (8, 1, 1)),
    ),
)


@dataclass(frozen=True)
class Rungs:
    """A ladder, and the KV memory of each of its replicas."""

    ladder: Ladder
    kv_tokens: int


@dataclass
class Stage:
    """A scene on FlexPipe's cluster, with what all its runs have in common."""

    scene: Scene
    entries: Sequence[TraceEntry]
    """Lengths."""
    requests: int
    between: Link = NETWORK
    tenancies: Sequence[Tenancy] = ()
    placer: Placer = place
    seen: Callable[[str], object] = lambda _: None
    """Hears of each run that begins."""
    setup: SimSetup = field(init=False)
    deployments: dict[str, Deployment] = field(init=False)
    replicas: Rungs = field(init=False)
    """The ladder of replicas of the coarsest pipeline."""
    stages: Rungs = field(init=False)
    """The ladder of more stages."""
    sharded: Rungs = field(init=False)
    """The ladder of replicas whose stages are sharded."""

    def __post_init__(self) -> None:
        self.setup = named_setup(self.scene.model, link=self.between)
        shapes = dict.fromkeys((*self.scene.replicas, *self.scene.others, *self.scene.sharded))
        self.deployments = {shape_name(shape): self.setup.deployment(*shape) for shape in shapes}
        others = [shape for shape in self.scene.others if shape[0] <= 16]
        self.replicas = self._rungs(self.scene.replicas)
        self.stages = self._rungs((self.scene.replicas[0], *others))
        self.sharded = self._rungs(self.scene.sharded)

    @property
    def coarsest(self) -> str:
        """Name of the smallest deployment."""
        return shape_name(self.scene.replicas[0])

    @property
    def pool(self) -> Deployment:
        """Replicas on as many devices as an always-on pool would hold, were all the cluster the
        historic peak."""
        devices = int(ALWAYS_ON * sum(flexpipe_hosts()))
        return self.setup.deployment(self.scene.stages, devices // self.scene.stages)

    @property
    def paced(self) -> PolicyConfig:
        """`EAGER`, with an objective from token to token that a busy rung misses."""
        idle = self.replicas.ladder.rungs[0].idle_latency_seconds
        assert idle is not None
        return replace(EAGER, scorer=replace(EAGER.scorer, itl_objective_seconds=PACE * idle))

    def _rungs(self, shapes: Sequence[Shape]) -> Rungs:
        names = [shape_name(shape) for shape in shapes]
        deployments = {name: self.deployments[name] for name in names}
        kv_tokens = self.setup.kv_tokens(deployments[names[0]].replicas[0])
        return Rungs(self.setup.ladder(deployments, kv_tokens), kv_tokens)

    def workload(self, kind: str, cv: float, seed: int, **options: Any) -> Workload:
        """Requests of this scene."""
        if kind == "day":
            span = {"begin": _DAY_BEGINS, "seconds": DAY_SECONDS}
            times = servegen_span(DAY, DAY_REQUESTS * self.requests, RATE, seed, **span)
        elif kind == "gamma":
            times = gamma_arrivals(self.requests, RATE, cv, seed)
        else:
            times = surge_arrivals(self.requests, RATE, cv, seed, **options)
        scales = {"prompt_scale": self.scene.prompt_scale, "output_scale": self.scene.output_scale}
        return with_lengths(times, self.entries, seed=seed, **scales)

    def run(self, system: System, workload: Workload, **options: Any) -> Result:
        """One system.

        Raises:
            RuntimeError: tenants leave no room for it at the start.
        """
        self.seen(system.name)
        cluster = SimCluster(
            flexpipe_hosts(),
            self.setup.memory_bytes,
            self.tenancies,
            self.placer,
            between=self.between,
        )
        alone = self.setup.alone_seconds(self.deployments[self.coarsest].replicas[0], workload)
        return simulate(system, self.setup, cluster, workload, alone=alone, **options)

    def elastic(self, name: str = "fjx", rungs: Rungs | None = None, **fields: Any) -> Elastic:
        """fjx, with something changed."""
        rungs = rungs or self.replicas
        given = {"policy": POLICY} | fields
        return Elastic(name=name, ladder=rungs.ladder, kv_tokens=rungs.kv_tokens, **given)

    def static(self, deployment: str, **fields: Any) -> Static:
        """A deployment by its name, for good."""
        rungs = self.sharded if "t" in deployment else self.replicas
        given = {"name": f"static {deployment}", "kv_tokens": rungs.kv_tokens} | fields
        return Static(deployment=self.deployments[deployment], **given)

    def scale_out(self, name: str, **fields: Any) -> ScaleOut:
        """Replicas that come and go."""
        one, kv_tokens = self.deployments[self.coarsest], self.replicas.kv_tokens
        return ScaleOut(name=name, deployment=one, kv_tokens=kv_tokens, **fields)
