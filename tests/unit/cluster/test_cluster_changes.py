"""Plans change across nodes with requests in flight, and no token changes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from benchmarks.local_cluster.nodes import add_node
from benchmarks.local_cluster.workers import pid_of
from tests.unit.cluster.cluster_cases import cluster_engine, spread
from tests.unit.engine.plan_cases import MIXED, PATIENCE, Served, expected, serve_through


@pytest.mark.slow
def test_nodes_are_drained_and_added_while_requests_are_served(nodes: Any, cache: Path) -> None:
    engine, started = cluster_engine(spread(3, 3, 2), cache)
    workers = started.plan_runtime.cluster.workers
    try:
        drained = spread(3, 5)
        targets = [drained, spread(8, nodes=("n2",)), spread(2, 6, nodes=("n2", "n1"))]
        answers, records = serve_through(engine, MIXED, targets)
        assert answers == [expected(ask) for ask in MIXED]
        engine.check_idle()
        assert sorted(workers) == ["n1", "n2"]
        # The last two granules went from n2 to n1, with the head; the first three stayed.
        assert records[0].parameter_bytes > 0
        assert all(record.kv_bytes > 0 for record in records)
        added = add_node(nodes, "n3")
        target = spread(4, 4, nodes=("n3", "n1"))
        answers, _ = serve_through(engine, MIXED[:4], [target])
        assert answers == [expected(ask) for ask in MIXED[:4]]
        assert sorted(workers) == ["n1", "n3"]
    finally:
        engine.plans.close("the test ends")
    nodes.remove_node(added)


@pytest.mark.slow
def test_a_stage_that_is_lost_in_a_change_aborts_it_and_costs_no_token(
    nodes: Any, cache: Path
) -> None:
    engine, started = cluster_engine(spread(4, 4), cache)
    try:
        served = Served(engine, MIXED)
        served.step(3)
        engine.regranularize(spread(2, 6, nodes=("n2", "n1")))
        engine.plans.wait(PATIENCE)
        served.step(1)
        os.kill(pid_of(started.executors[0].workers[0]), signal.SIGKILL)
        assert served.finish() == [expected(ask) for ask in MIXED]
        last = engine.plans.status().last
        assert last is not None
        assert last.state == "aborted"
        assert engine.plans.deployment.replicas == (spread(4, 4),)
    finally:
        engine.plans.close("the test ends")


@pytest.mark.slow
def test_a_lost_node_leaves_its_stages_to_the_others(nodes: Any, cache: Path) -> None:
    node = add_node(nodes, "n4")
    engine, started = cluster_engine(spread(3, 3, 2, nodes=("n0", "n4", "n1")), cache)
    try:
        served = Served(engine, MIXED)
        served.step(8)
        pid = pid_of(started.executors[0].workers[1])
        nodes.remove_node(node, allow_graceful=False)
        os.kill(pid, signal.SIGKILL)  # a worker outlives its node's Ray for a while
        assert served.finish() == [expected(ask) for ask in MIXED]
        (plan,) = engine.plans.deployment.replicas
        assert plan.granularity == 3
        assert "n4" not in {device.host for device in plan.devices}
    finally:
        engine.plans.close("the test ends")
