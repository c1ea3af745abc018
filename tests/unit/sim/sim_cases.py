"""Small machines, workloads and systems for the tests of the simulator."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import simpy

from fjx.granularity.policy import PolicyConfig
from fjx.scheduling.request import Request
from fjx.sim.changes import Switching
from fjx.sim.costs import StageCosts, table_costs
from fjx.sim.engine_replica import EngineReplica
from fjx.sim.setup import SimSetup, named_setup
from fjx.sim.sim_cluster import SimCluster
from fjx.sim.sim_replica import SimReplica
from fjx.sim.sim_speculation import DrafterProfile, SimSpeculation
from fjx.sim.steps import ReplicaLimits
from fjx.sim.systems import Elastic, Foresight, ScaleOut, Static, System
from fjx.sim.workload import SimRequest, surge_arrivals
from fjx.speculation.policy.lengths import LengthPolicy

DEVICES = 16


def pipeline_costs(stages: int, max_rows: int) -> StageCosts:
    """Every part of the cost model is in use."""
    rows = np.arange(max_rows + 1.0)
    return StageCosts(
        compute=np.tile(2e-5 * rows, (stages, 1)),
        read=np.full((stages, max_rows + 1), 4e-3),
        fixed=np.tile(1e-4 + 1e-7 * rows, (stages, 1)),
        sample_seconds=np.linspace(0, 1e-5, stages),
        pair_seconds=np.full(stages, 1e-9),
        context_seconds=np.full(stages, 1e-7),
    )


def constant_costs(seconds: float, max_rows: int = 64) -> StageCosts:
    """Every step takes as long."""
    return table_costs([seconds] * (max_rows + 1))


class Heard:
    """Keeps when requests got their first and last tokens."""

    def __init__(self) -> None:
        self.first: dict[int, float] = {}
        self.end: dict[int, float] = {}
        self.steps: list[float] = []

    def first_token(self, request: Request, now: float) -> None:
        assert request.index not in self.first
        self.first[request.index] = now

    def ended(self, request: Request, now: float) -> None:
        assert request.index not in self.end
        self.end[request.index] = now

    def stepped(self, now: float, seconds: float) -> None:
        self.steps.append(seconds)


class Change(NamedTuple):
    """A change of plan."""

    at: float
    costs: StageCosts
    microbatches: int
    pause: float
    copying: float = 0.3
    slowness: float = 1.25


def serve(
    workload: list[SimRequest],
    limits: ReplicaLimits,
    costs: StageCosts,
    microbatches: int = 1,
    *,
    exact: bool = False,
    drafting: DrafterProfile | None = None,
    lengths: LengthPolicy | None = None,
    host_seconds: float = 0.0,
    changes: Sequence[Change] = (),
) -> tuple[Heard, SimReplica | EngineReplica]:
    """Serve a workload on one replica to its end, and audit its pages and slots; ``exact``: the
    engine does it, as it always does with drafts."""
    env, heard = simpy.Environment(0.0), Heard()
    given = env, limits, costs, microbatches, heard
    replica: SimReplica | EngineReplica
    if exact or drafting is not None:
        replica = EngineReplica(
            *given,
            longest=max(each.prompt + each.output for each in workload),
            speculation=None if drafting is None else SimSpeculation(drafting, 1, lengths),
            host_seconds=host_seconds,
        )
    else:
        replica = SimReplica(*given, host_seconds=host_seconds)

    def arrivals():  # type: ignore[no-untyped-def]
        for number, each in enumerate(workload):
            yield env.timeout(each.arrival - env.now)
            replica.add(each.to_engine(number, each.arrival))

    def change():  # type: ignore[no-untyped-def]
        for each in changes:
            yield env.timeout(max(each.at - env.now, 0.0))
            replica.slow_down(each.slowness)
            yield env.timeout(each.copying)
            replica.slow_down(1.0)
            yield replica.switch(each.costs, each.microbatches, each.pause)

    env.process(arrivals())
    env.process(change())
    env.run()
    replica.close()
    replica.scheduler.check()
    if isinstance(replica, EngineReplica):
        replica.engine.check_idle()
    return heard, replica


def poisson(
    count: int, rate: float, prompt: int = 200, output: int = 100, seed: int = 0
) -> list[SimRequest]:
    """Independent arrivals with lengths up to twice the given ones."""
    random = np.random.default_rng(seed)
    arrival = random.exponential(1 / rate, count).cumsum().tolist()
    prompts = random.integers(1, 2 * prompt, count).tolist()
    outputs = random.integers(1, 2 * output, count).tolist()
    return [SimRequest(*each) for each in zip(arrival, prompts, outputs, strict=True)]


@functools.cache
def setup() -> SimSetup:
    return named_setup("llama-2-7b", granules=8, max_devices=DEVICES, max_num_seqs=64)


def cluster() -> SimCluster:
    return SimCluster([2] * (DEVICES // 2), setup().memory_bytes)


def surges(count: int = 600, rate: float = 20.0) -> list[SimRequest]:
    """Waves that one device cannot serve, and quiet between them."""
    arrival = surge_arrivals(count, rate, 2.0, seed=3, window=5.0)
    return [SimRequest(at, 700, 60) for at in arrival]


def systems() -> dict[str, System]:
    """One of each kind."""
    of = setup()
    one = of.deployment(1)
    kv = of.kv_tokens(one.replicas[0])
    rungs = {f"{s}x{r}": of.deployment(s, r) for s, r in ((1, 1), (2, 1), (4, 1), (4, 2))}
    ladder = of.ladder(rungs, kv)
    eager = PolicyConfig(finer_hold_seconds=0, hold_observations=1, cooldown_seconds=2)
    return {
        "static": Static(name="static", deployment=rungs["2x1"], kv_tokens=kv),
        "elastic": Elastic(name="elastic", ladder=ladder, kv_tokens=kv, policy=eager),
        "restarting": Elastic(
            name="restarting",
            ladder=ladder,
            kv_tokens=kv,
            policy=eager,
            switching=Switching(loads_ahead=False, copies_ahead=False),
        ),
        "foresight": Foresight(name="foresight", ladder=ladder, kv_tokens=kv),
        "scale-out": ScaleOut(
            name="scale-out",
            deployment=one,
            kv_tokens=kv,
            first_tier="disk",
            target=16,
            most=8,
            keep_seconds=3,
        ),
    }
