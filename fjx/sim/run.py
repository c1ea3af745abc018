"""One run: a system serves a workload on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simpy

from fjx.sim.metrics import Outcomes, SimMetrics, measure
from fjx.sim.service import Service, ServiceSample
from fjx.sim.setup import SimSetup
from fjx.sim.sim_cluster import SimCluster
from fjx.sim.sim_speculation import DrafterProfile
from fjx.sim.systems import System
from fjx.sim.workload import Workload
from fjx.speculation.policy.lengths import LengthPolicy


@dataclass(frozen=True)
class Result:
    """Of a run."""

    name: str
    metrics: SimMetrics
    outcomes: Outcomes
    samples: Sequence[ServiceSample]


def simulate(
    system: System,
    setup: SimSetup,
    cluster: SimCluster,
    workload: Workload,
    *,
    objective: float = 5.0,
    alone: np.ndarray | None = None,
    drafting: DrafterProfile | None = None,
    lengths: LengthPolicy | None = None,
    exact: bool = False,
    seed: int = 0,
) -> Result:
    """Serve a workload to its last request.

    Args:
        system: Decides.
        setup: The model and its devices.
        cluster: Fresh: it counts what is held.
        workload: Who comes when.
        objective: A request is served well if it takes at most this many times its time alone.
        alone: Those times; by default on the smallest deployment that the setup can plan.
        drafting: Speculation; None: none.
        lengths: How long drafts are; by default the engine's own policy.
        exact: Let the engine make every step (`fjx.sim.engine_replica`), as it does with
            speculation: slow, for checks.
        seed: Of what is drawn.
    """
    env = simpy.Environment(0.0)
    service = Service(
        env,
        setup,
        cluster,
        workload,
        exact=exact,
        drafting=drafting,
        lengths=lengths,
        seed=seed,
    )
    if alone is None:
        alone = setup.alone_seconds(setup.smallest().replicas[0], workload)
    env.process(system.run(service))
    service.begin()
    try:
        env.run(until=service.done)
    finally:
        service.close()
    cluster.end(env.now)
    held = [sample.devices for sample in service.samples if sample.devices > 0]
    metrics = measure(
        service.outcomes(alone),
        objective=objective,
        device_seconds=cluster.held_seconds,
        devices=(min(held, default=0.0), cluster.max_held),
        changes=service.changes,
    )
    return Result(system.name, metrics, service.outcomes(alone), service.samples)
