"""A worker that was slow from the beginning is named, too."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from benchmarks.local_cluster.workers import pid_of, stopped_mostly
from fjx.cluster.health.speed import Speed
from tests.unit.cluster.cluster_cases import cluster_engine, spread
from tests.unit.engine.plan_cases import MIXED, Served, expected

LONGEST = 120.0
"""Seconds after which waiting counts as hanging."""


@pytest.mark.slow
def test_a_worker_that_was_never_faster_is_compared_with_the_others(
    nodes: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, started = cluster_engine(spread(3, 3, 2), cache)
    worker = started.plan_runtime.cluster.workers["n1"]
    rounds: list[Served] = []
    deadline = time.monotonic() + LONGEST
    try:
        with stopped_mostly(pid_of(worker), stopped=0.2, running=0.02):
            # Nothing else is known of it than what is measured from now on.
            worker.steps_speed, worker.answers_speed = Speed(), Speed()
            while f"slow: {worker}" not in caplog.text:
                assert time.monotonic() < deadline
                if not engine.has_work:
                    rounds.append(Served(engine, MIXED[:4], f"{len(rounds)} "))
                rounds[-1].step()
        line = next(each for each in caplog.messages if f"slow: {worker}" in each)
        assert "times as long as elsewhere" in line
        rounds[-1].finish()
        assert all(each.answers == [expected(ask) for ask in MIXED[:4]] for each in rounds)
        assert not started.plan_runtime.repairs
    finally:
        engine.plans.close("the test ends")
