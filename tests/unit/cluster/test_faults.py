"""Workers that are slow, silent, cut off, or lost while nothing is asked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from benchmarks.local_cluster.workers import is_running, pid_of, stopped_mostly
from fjx.cluster.cluster import Timeouts
from tests.unit.cluster.cluster_cases import cluster_engine, spread
from tests.unit.engine.plan_cases import MIXED, Served, expected

pytestmark = pytest.mark.slow

LONGEST = 120.0
"""Seconds after which waiting counts as hanging."""


def wait_until(happened: Callable[[], object]) -> float:
    """Seconds until it has happened."""
    begun = time.monotonic()
    while not happened():
        assert time.monotonic() < begun + LONGEST
        time.sleep(0.01)
    return time.monotonic() - begun


def test_a_slow_worker_is_named_and_left_alone(nodes: Any, cache: Path) -> None:
    engine, started = cluster_engine(spread(3, 3, 2), cache)
    plan_runtime, workers = started.plan_runtime, started.plan_runtime.cluster.workers
    asks, rounds = MIXED[:4], [Served(engine, MIXED[:4])]

    def serves(happened: Callable[[], object]) -> bool:
        if not engine.has_work:
            rounds.append(Served(engine, asks, f"{len(rounds)} "))
        rounds[-1].step()
        return bool(happened())

    try:
        pids = [pid_of(workers[host]) for host in ("n0", "n1", "n2")]
        speeds = [s for m in workers.values() for s in (m.steps_speed, m.answers_speed)]
        wait_until(lambda: serves(lambda: all(speed.known for speed in speeds)))
        wait_until(lambda: serves(lambda: "stage 1 on node n1" not in plan_runtime.slow()))
        # So long that its answers stand out on a busy machine as well, whose usual ones are late.
        with stopped_mostly(pids[1], stopped=1.0, running=0.02):
            # Others may be slow there for a while, too.
            wait_until(lambda: serves(lambda: "stage 1 on node n1" in plan_runtime.slow()))
        wait_until(lambda: serves(lambda: "stage 1 on node n1" not in plan_runtime.slow()))
        rounds[-1].finish()
        assert all(each.answers == [expected(ask) for ask in asks] for each in rounds)
        assert [pid_of(workers[host]) for host in ("n0", "n1", "n2")] == pids
        assert not plan_runtime.repairs
    finally:
        engine.plans.close("the test ends")


def test_a_worker_that_hears_nothing_from_its_driver_ends(nodes: Any, cache: Path) -> None:
    engine, started = cluster_engine(spread(5, 3), cache, Timeouts(heartbeat=0.5))
    cluster = started.plan_runtime.cluster
    try:
        (answer,) = Served(engine, MIXED[:1]).finish()
        assert answer == expected(MIXED[0])
        pids = [pid_of(worker) for worker in cluster.workers.values()]
        cluster._watch.stop()
        seconds = wait_until(lambda: not any(is_running(pid) for pid in pids))
        assert seconds > 1.0
    finally:
        engine.plans.close("the test ends")


def test_what_is_lost_while_nothing_is_asked_is_replaced_at_once(nodes: Any, cache: Path) -> None:
    engine, started = cluster_engine(spread(5, 3), cache)
    plan_runtime = started.plan_runtime
    try:
        assert Served(engine, MIXED[:2], "first").finish() == [expected(a) for a in MIXED[:2]]
        os.kill(pid_of(plan_runtime.cluster.workers["n1"]), signal.SIGKILL)

        def replaced() -> bool:
            wait = engine.idle()
            assert wait is not None
            assert wait <= 1.0
            return bool(plan_runtime.repairs) and not engine.executor.lost

        wait_until(replaced)
        # The next request has nothing to wait for.
        served = Served(engine, MIXED, "second")
        served.step()
        assert engine.executor is not started.executors[0]
        assert served.finish() == [expected(ask) for ask in MIXED]
        assert len(plan_runtime.repairs) == 1
        engine.check_idle()
    finally:
        engine.plans.close("the test ends")


def test_a_node_that_is_cut_off_costs_nothing_and_its_worker_ends() -> None:
    run_in_own_network("cut_off")


def test_a_cut_between_two_workers_is_noticed_and_led_around() -> None:
    run_in_own_network("split")


def run_in_own_network(program: str) -> None:
    """Run a program of this folder; it must succeed."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "--net", "true"], check=False).returncode:
        pytest.skip("it takes Linux's unshare and the right to make network namespaces")
    command = [sys.executable, "-m", f"tests.unit.cluster.{program}"]
    result = subprocess.run(
        [unshare, "--net", *command], check=False, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stdout + result.stderr
