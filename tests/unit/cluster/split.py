"""Serves through a cut between two nodes that the driver both reaches. A program, because its
network must be its own."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from fjx.cluster.cluster import Timeouts
from tests.unit.cluster.cluster_cases import cluster_engine, separate_networks, spread
from tests.unit.engine.plan_cases import MIXED, Served, expected

BEAT = 2.0


def main() -> None:
    """Cut the second stage off from the third, of a plan of three, where a node is to spare."""
    with tempfile.TemporaryDirectory() as folder, separate_networks(3) as nets:
        plan = spread(3, 3, 2, nodes=("n1", "n2", "n3"))
        engine, started = cluster_engine(plan, Path(folder), Timeouts(heartbeat=BEAT))
        plan_runtime, before = started.plan_runtime, started.executors[0]
        try:
            served = Served(engine, MIXED)
            served.step(10)
            nets[1].cut_from(nets[2])
            cut = time.monotonic()
            while not plan_runtime.repairs:
                served.step()
            noticed = time.monotonic() - cut - plan_runtime.repairs[0]
            assert served.finish() == [expected(ask) for ask in MIXED]
            engine.check_idle()
            assert "do not reach each other" in str(before.failure)
            assert len(plan_runtime.repairs) == 1
            (plan,) = engine.plans.deployment.replicas
            assert plan.granularity == 3
            assert {device.host for device in plan.devices} == {"n0", "n1", "n2"}
            # The first stage never was in the way.
            assert before.workers[0] in engine.executor.workers  # type: ignore[attr-defined]
            print(f"noticed after {noticed:.1f} s, replaced {plan_runtime.repairs[0]:.1f} s later")
        finally:
            engine.plans.close("the test ends")


if __name__ == "__main__":
    main()
