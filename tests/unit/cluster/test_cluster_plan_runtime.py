"""What is lost again and again is replaced ever more seldom, and at once when it is needed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from benchmarks.local_cluster.workers import pid_of
from fjx.cluster.cluster import Timeouts
from fjx.cluster.cluster_plan_runtime import ClusterPlanRuntime
from fjx.errors import StageLostError
from tests.unit.cluster.cluster_cases import cluster_engine, spread
from tests.unit.engine.plan_cases import MIXED, Served, expected

LONGEST = 60.0
"""Seconds after which waiting counts as hanging."""
PAUSE = 0.02


class Broken:
    """A cluster on which no worker loads."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self.attempts: list[float] = []

    def end_lost(self) -> None:
        pass

    def topology(self) -> Any:
        self.attempts.append(time.monotonic())
        raise StageLostError("stage 1 on node n1 is gone")

    def close(self) -> None:
        pass


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONGEST
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_where_no_request_waits_the_pauses_grow_and_nobody_gives_up() -> None:
    cluster = Broken(Timeouts(repair=0.0, pause=PAUSE))
    plan_runtime = ClusterPlanRuntime(cluster)  # type: ignore[arg-type]
    planner: Any = None
    wait_until(
        lambda: plan_runtime.repair(planner, (), 0.0, asked=False) or len(cluster.attempts) > 5
    )
    gaps = [after - before for before, after in pairwise(cluster.attempts[:6])]
    assert all(gap >= PAUSE * 2**number for number, gap in enumerate(gaps))
    assert plan_runtime.replaced_in_vain() >= 5
    plan_runtime.close()


def test_a_request_ends_the_pause_and_gets_an_error_in_the_end() -> None:
    cluster = Broken(Timeouts(repair=0.0, pause=1000.0))
    plan_runtime = ClusterPlanRuntime(cluster)  # type: ignore[arg-type]
    planner: Any = None
    wait_until(
        lambda: (
            plan_runtime.repair(planner, (), 0.0, asked=False) or plan_runtime.replaced_in_vain()
        )
    )
    for _ in range(20):
        assert plan_runtime.repair(planner, (), 0.01, asked=False) is None
    assert len(cluster.attempts) == 1

    def asks() -> None:
        wait_until(lambda: plan_runtime.repair(planner, (), 0.01, asked=True))

    with pytest.raises(StageLostError, match="stage 1 on node n1 is gone"):
        asks()
    assert len(cluster.attempts) == 2
    plan_runtime.close()


@pytest.mark.slow
def test_a_worker_that_ends_over_and_over_is_awaited_and_serves_who_asks(
    nodes: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, started = cluster_engine(spread(5, 3), cache, Timeouts(pause=600.0))
    plan_runtime, asks = started.plan_runtime, MIXED[:4]

    def kill() -> None:
        os.kill(pid_of(plan_runtime.cluster.workers["n1"]), signal.SIGKILL)
        wait_until(lambda: engine.executor.lost)

    def replaced() -> bool:
        engine.idle()
        return not engine.executor.lost

    try:
        assert Served(engine, asks, "first").finish() == [expected(ask) for ask in asks]
        kill()
        wait_until(replaced)  # at once, as it has served
        assert plan_runtime.replaced_in_vain() == 0
        kill()
        for _ in range(20):
            assert not replaced()
            time.sleep(0.02)
        assert plan_runtime.replaced_in_vain() == 1
        wait_until(lambda: "the next attempt is in 600 s" in caplog.text)
        assert Served(engine, asks, "second").finish() == [expected(ask) for ask in asks]
        assert len(plan_runtime.repairs) == 2
        assert engine.stats().plan.replaced_in_vain == 0
        engine.check_idle()
    finally:
        engine.plans.close("the test ends")
