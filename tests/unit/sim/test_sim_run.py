"""Whole runs: every request ends, the same seed gives the same result, the policies are real."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fjx.granularity.autopilot
import fjx.sharding.costs.difference
from fjx.granularity import policy
from fjx.sim import changes as changes_module
from fjx.sim import systems as systems_module
from fjx.sim.run import Result, simulate
from fjx.sim.sim_cluster import SimCluster, Tenancy
from fjx.sim.sim_speculation import DrafterProfile
from fjx.sim.workload import SimRequest
from tests.unit.sim.sim_cases import cluster, setup, surges, systems

KINDS = ("static", "elastic", "restarting", "foresight", "scale-out")


def run(kind: str, **options: object) -> Result:
    return simulate(systems()[kind], setup(), cluster(), surges(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_ends_after_it_began_and_no_sooner_than_alone(kind: str) -> None:
    result = run(kind)
    outcomes = result.outcomes
    assert result.metrics.refused == 0
    assert np.all(outcomes.first > outcomes.arrival)
    assert np.all(outcomes.end >= outcomes.first)
    fastest = setup().alone_seconds(setup().deployment(1).replicas[0], surges())
    assert np.all(outcomes.end - outcomes.arrival > 0.9 * fastest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_result(kind: str) -> None:
    one, other = run(kind), run(kind)
    assert np.array_equal(one.outcomes.end, other.outcomes.end)
    assert one.metrics == other.metrics


def test_speculation_is_repeatable_too_and_another_seed_is_another_run() -> None:
    few = surges(60, 2.0)

    def end(seed: int) -> np.ndarray:
        system, drafting = systems()["static"], DrafterProfile()
        result = simulate(system, setup(), cluster(), few, drafting=drafting, seed=seed)
        return result.outcomes.end

    assert np.array_equal(end(1), end(1))
    assert not np.array_equal(end(1), end(2))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_at_once_change_nothing_in_a_whole_system(kind: str) -> None:
    quick, exact = run(kind), run(kind, exact=True)
    assert quick.outcomes.end == pytest.approx(exact.outcomes.end, abs=1e-6)
    assert quick.metrics.device_seconds == pytest.approx(exact.metrics.device_seconds)


def test_an_elastic_pipeline_changes_in_surges_and_holds_fewer_devices_than_its_peak() -> None:
    metrics = run("elastic").metrics
    assert metrics.changes >= 2
    assert metrics.devices_least < metrics.devices_mean < metrics.devices_most


def test_a_change_that_stops_the_service_costs_latency() -> None:
    assert run("restarting").metrics.latency_mean > run("elastic").metrics.latency_mean


def test_no_more_devices_are_held_than_other_tenants_leave() -> None:
    taken = [Tenancy(i, 0.9, 0.0, 1e9) for i in range(12)]
    crowded = SimCluster([2] * 8, setup().memory_bytes, taken)
    result = simulate(systems()["elastic"], setup(), crowded, surges())
    assert result.metrics.devices_most <= 4
    assert result.metrics.refused == 0


def test_replicas_of_shards_grow_on_hosts_that_are_free_as_a_whole() -> None:
    of = setup()
    rungs = {f"1x{n}": of.deployment(1, n, tensor=2) for n in (1, 2, 4)}
    kv = of.kv_tokens(rungs["1x1"].replicas[0])
    elastic = systems()["elastic"]
    assert isinstance(elastic, systems_module.Elastic)
    sharded = replace(elastic, ladder=of.ladder(rungs, kv), kv_tokens=kv)
    # One device of every other host is taken: half of the free devices are in no pair.
    taken = [Tenancy(4 * i, 0.9, 0.0, 1e9) for i in range(4)]
    crowded = SimCluster([2] * 8, of.memory_bytes, taken)
    metrics = simulate(sharded, of, crowded, surges()).metrics
    assert metrics.refused == 0
    assert 2 < metrics.devices_most <= 8


def test_a_request_longer_than_the_memory_is_refused_and_the_others_are_served() -> None:
    workload = [SimRequest(0.0, 10, 5), SimRequest(0.1, 10**6, 5), SimRequest(0.2, 10, 5)]
    result = simulate(systems()["static"], setup(), cluster(), workload)
    assert result.metrics.refused == 1
    assert np.isnan(result.outcomes.end).tolist() == [False, True, False]


def test_decisions_and_bytes_are_those_of_the_engines_own_functions() -> None:
    assert systems_module.Autopilot is fjx.granularity.autopilot.Autopilot
    assert vars(fjx.granularity.autopilot)["decide"] is policy.decide
    assert vars(changes_module)["difference"] is fjx.sharding.costs.difference.difference
