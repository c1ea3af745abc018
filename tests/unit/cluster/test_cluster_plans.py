"""Plans of every kind on a cluster: replicas, microbatches, stages that come back to a node, tensor
parallelism."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from benchmarks.local_cluster.workers import pid_of
from fjx.sharding.plan.plan import Deployment
from fjx.sharding.topology.cluster_file import parse_cluster
from tests.unit.cluster.cluster_cases import cluster_engine, placed
from tests.unit.engine.plan_cases import MIXED, Served, expected, is_near_tie, serve_through

pytestmark = pytest.mark.slow

THERE_AND_BACK = placed((3, "n0", (0,)), (3, "n1", (0,)), (2, "n0", (1,)), microbatches=2)
REPLICAS = Deployment(
    (
        placed((3, "n1", (0,)), (3, "n0", (0,)), (2, "n0", (1,))),
        placed((8, "n2", (1,))),
    )
)
RACKS = """
[[node]]
name = "n0"
platform = "cpu"
devices = 1
rack = "one"
[[node]]
name = "n1"
platform = "cpu"
devices = 1
rack = "two"
[[node]]
name = "n2"
platform = "cpu"
devices = 1
rack = "two"
[links]
within_rack = { bandwidth = 10e9, latency = 1e-5 }
between = { bandwidth = 1e9, latency = 1e-3 }
"""
TENSOR = placed((4, "n0", (0, 1)), (4, "n2", (0,)))
OTHER_WAY = placed((2, "n2", (1,)), (6, "n1", (1, 0)))


def test_replicas_and_stages_that_come_back_to_a_node(nodes: Any, cache: Path) -> None:
    engine, started = cluster_engine(THERE_AND_BACK, cache, cpu_devices=2)
    try:
        answers, _ = serve_through(engine, MIXED, [REPLICAS])
        assert answers == [expected(ask) for ask in MIXED]
        served = Served(engine, MIXED, "again")
        served.step(6)
        worker = started.plan_runtime.cluster.workers["n2"]
        os.kill(pid_of(worker), signal.SIGKILL)
        assert served.finish() == [expected(ask) for ask in MIXED]
        # The replica that was left had all parameters, and served on.
        (loaded,) = started.plan_runtime.cluster.loaded
        assert (loaded.fetched, loaded.read) == (10, 0)
        engine.check_idle()
    finally:
        engine.plans.close("the test ends")


def test_stages_split_over_the_devices_of_a_node(nodes: Any, cache: Path) -> None:
    engine, _ = cluster_engine(TENSOR, cache, cpu_devices=2)
    try:
        asks = [ask._replace(params=replace(ask.params, logprobs=2)) for ask in MIXED]
        answers, records = serve_through(engine, asks, [OTHER_WAY])
        assert records[0].kv_bytes > 0
        for ask, answer in zip(asks, answers, strict=True):
            if answer.tokens != expected(ask).tokens:
                assert is_near_tie(ask, answer.tokens)
        engine.check_idle()
    finally:
        engine.plans.close("the test ends")


def test_stages_go_to_nodes_that_a_cluster_file_says_are_near(nodes: Any, cache: Path) -> None:
    engine, _ = cluster_engine(2, cache, known=parse_cluster(RACKS))

    def serving() -> set[str]:
        return {device.host for device in engine.executor.plan.devices}

    try:
        assert serving() == {"n1", "n2"}
        answers, _ = serve_through(engine, MIXED, [1])
        assert answers == [expected(ask) for ask in MIXED]
        assert len(serving()) == 1
        assert serving() < {"n1", "n2"}
        answers, _ = serve_through(engine, MIXED, [2])
        assert answers == [expected(ask) for ask in MIXED]
        assert serving() == {"n1", "n2"}
        engine.check_idle()
    finally:
        engine.plans.close("the test ends")
