"""A model over three nodes gives the tokens that it gives in one process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from benchmarks.local_cluster.workers import pid_of
from fjx.cluster.cluster import Timeouts
from tests.unit.cluster.cluster_cases import cluster_engine, spread
from tests.unit.engine.plan_cases import MIXED, Served, expected


def test_tokens_are_those_of_one_process(nodes: Any, cache: Path) -> None:
    engine, started = cluster_engine(spread(3, 3, 2), cache)
    try:
        for answer, ask in zip(Served(engine, MIXED).finish(), MIXED, strict=True):
            assert answer == expected(ask)
        engine.check_idle()
        assert [loaded.read for loaded in started.plan_runtime.cluster.loaded] == [4, 3, 3]
    finally:
        engine.plans.close("the test ends")


@pytest.mark.slow
def test_a_killed_stage_costs_no_request_and_no_token(nodes: Any, cache: Path) -> None:
    engine, started = cluster_engine(spread(3, 3, 2), cache)
    cluster = started.plan_runtime.cluster
    try:
        for stage, host in enumerate(("n0", "n1", "n2")):
            served = Served(engine, MIXED, f"{host} ")
            served.step(12)
            assert engine.executor.workers[stage].node.host == host  # type: ignore[attr-defined]
            os.kill(pid_of(cluster.workers[host]), signal.SIGKILL)
            for answer, ask in zip(served.finish(), MIXED, strict=True):
                assert answer == expected(ask)
            engine.check_idle()
            assert len(started.plan_runtime.repairs) == stage + 1
            # The neighbour of the lost worker had its parameters in host memory.
            pieces = {0: 4, 1: 3, 2: 3}
            assert cluster.loaded[stage].fetched == pieces.pop(stage)
            assert [cluster.loaded[i].stayed for i in pieces] == list(pieces.values())
    finally:
        engine.plans.close("the test ends")


@pytest.mark.slow
def test_an_idle_cluster_holds_no_worker_and_wakes_on_a_request(nodes: Any, cache: Path) -> None:
    engine, started = cluster_engine(spread(5, 3), cache, idle_seconds=0.2)
    cluster = started.plan_runtime.cluster
    try:
        ask = MIXED[1]
        assert Served(engine, [ask], "first").finish() == [expected(ask)]
        wait = engine.idle()
        assert wait is not None
        assert len(cluster.workers) == 2
        time.sleep(wait + 0.01)
        assert engine.idle() is None
        assert not cluster.workers
        assert Served(engine, [ask], "second").finish() == [expected(ask)]
        engine.check_idle()
        assert len(cluster.workers) == 2
    finally:
        engine.plans.close("the test ends")


@pytest.mark.slow
def test_a_stopped_worker_is_replaced(nodes: Any, cache: Path) -> None:
    engine, started = cluster_engine(spread(4, 4), cache, Timeouts(heartbeat=3.0))
    try:
        served = Served(engine, MIXED[:3])
        served.step(8)
        pid = pid_of(started.executors[0].workers[1])
        os.kill(pid, signal.SIGSTOP)  # it neither works nor ends, like a node that is cut off
        assert served.finish() == [expected(ask) for ask in MIXED[:3]]
        assert len(started.plan_runtime.repairs) == 1
    finally:
        engine.plans.close("the test ends")
