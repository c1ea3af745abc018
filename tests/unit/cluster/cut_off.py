"""Serves through a cut of a node's network. A program, because its network must be its own."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.local_cluster.workers import is_running, pid_of
from fjx.cluster.cluster import Timeouts
from tests.unit.cluster.cluster_cases import cluster_engine, separate_networks, spread
from tests.unit.engine.plan_cases import MIXED, Served, expected

BEAT = 1.5
CUT_SECONDS = 30.0
"""Longest; Ray itself would end the worker only when the node is back."""


def main() -> None:
    """Cut the node of the middle stage off for good; its worker must end by itself."""
    with tempfile.TemporaryDirectory() as folder, separate_networks(2) as nets:
        engine, started = cluster_engine(spread(3, 3, 2), Path(folder), Timeouts(heartbeat=BEAT))
        try:
            served = Served(engine, MIXED)
            served.step(10)
            pid = pid_of(started.executors[0].workers[1])
            nets[0].cut()
            begun = time.monotonic()
            assert served.finish() == [expected(ask) for ask in MIXED]
            engine.check_idle()
            assert len(started.plan_runtime.repairs) == 1
            (plan,) = engine.plans.deployment.replicas
            assert "n1" not in {device.host for device in plan.devices}
            while is_running(pid):
                assert time.monotonic() < begun + CUT_SECONDS
                time.sleep(0.05)
        finally:
            nets[0].heal()  # or Ray waits for the node
            engine.plans.close("the test ends")


if __name__ == "__main__":
    main()
