"""The figures of a ladder's rungs, as the granule graph models them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fjx.errors import MemoryFitError, UserError
from fjx.granularity.ladder import Ladder, best_cv, ladder_from_graph
from fjx.sharding.costs.analytic import DeviceFigures, analytic_graph
from fjx.sharding.costs.difference import difference
from fjx.sharding.costs.figures import Workload
from fjx.sharding.plan.plan import Deployment, Device
from fjx.sharding.planner.planner import even_mesh, plan_mesh
from fjx.sharding.topology.topology import UNKNOWN_MEMORY, DeviceState, Link, Topology
from tests.unit.granularity.policy_cases import GIGABYTE, LADDER, NAMES, deployment, rung
from tests.unit.sharding.toy import FIGURES, GRAPH, SIZES

WORKLOAD = Workload(rows=8, kv_tokens=64, copied_tokens=16)


def machine(free: int = 1 << 21) -> Topology:
    devices = tuple(DeviceState(Device("a", "gpu", i), free) for i in range(4))
    return Topology(devices, within=Link(1e8, 1e-5))


def even(stages: int, replicas: int = 1) -> Deployment:
    return plan_mesh(even_mesh(stages, replicas=replicas), machine(), GRAPH, WORKLOAD)


DEPLOYMENTS = {"four": even(4), "one": even(1), "two": even(2)}


def modelled(workload: Workload = WORKLOAD, free: int = 1 << 21) -> Ladder:
    return ladder_from_graph(GRAPH, DEPLOYMENTS, workload, machine(free))


def test_finer_pipelines_hold_more_devices_serve_more_and_take_longer_for_a_token() -> None:
    ladder = modelled()
    one, two, four = ladder.rungs
    assert [each.name for each in ladder.rungs] == ["one", "two", "four"]
    assert [each.devices for each in ladder.rungs] == [1, 2, 4]
    assert one.tokens_per_second < two.tokens_per_second < four.tokens_per_second
    assert four.tokens_per_second < 4 * one.tokens_per_second
    assert one.latency_seconds < two.latency_seconds < four.latency_seconds
    assert two.kv_tokens > 2 * one.kv_tokens


def test_a_token_alone_comes_sooner_than_one_of_a_full_batch() -> None:
    graph = analytic_graph(SIZES, [2] * 8, [1, 8], FIGURES)
    eight = ladder_from_graph(graph, DEPLOYMENTS, WORKLOAD, machine()).rungs
    one = ladder_from_graph(graph, DEPLOYMENTS, replace(WORKLOAD, rows=1), machine()).rungs
    for full, alone in zip(eight, one, strict=True):
        assert full.idle_latency_seconds == alone.latency_seconds
        assert alone.latency_seconds < full.latency_seconds


def test_one_stage_does_its_rows_once_in_its_latency() -> None:
    one = modelled().rung("one")
    assert one.tokens_per_second == pytest.approx(WORKLOAD.rows / one.latency_seconds)


def test_the_kv_room_fits_and_more_does_not() -> None:
    for each in modelled().rungs:
        alone = {each.name: each.deployment}
        ladder_from_graph(GRAPH, alone, replace(WORKLOAD, kv_tokens=each.kv_tokens), machine())
        more = replace(WORKLOAD, kv_tokens=each.kv_tokens + 1)
        with pytest.raises(MemoryFitError, match=f"^rung '{each.name}': stage [0-9] needs"):
            ladder_from_graph(GRAPH, alone, more, machine())


def test_where_memory_is_not_known_the_room_is_what_the_workload_asks_for() -> None:
    assert {each.kv_tokens for each in modelled(free=UNKNOWN_MEMORY).rungs} == {64}


def test_replicas_add_up_and_are_no_faster_for_one_token() -> None:
    deployments = {"one": even(1), "twice": even(1, replicas=2)}
    one, twice = ladder_from_graph(GRAPH, deployments, WORKLOAD, machine()).rungs
    assert twice.tokens_per_second == pytest.approx(2 * one.tokens_per_second)
    assert twice.latency_seconds == one.latency_seconds
    assert (twice.devices, twice.kv_tokens) == (2, 2 * one.kv_tokens)
    assert twice.best_cv == one.best_cv


def test_stages_on_one_device_serve_no_more_than_the_device() -> None:
    mesh = plan_mesh(even_mesh(1), machine(), GRAPH, WORKLOAD).replicas[0].stages[0].mesh
    two = even(2).replicas[0]
    shared = replace(
        two, stages=tuple(replace(stage, mesh=mesh) for stage in two.stages), shared_devices=True
    )
    deployments = {"one": even(1), "shared": Deployment((shared,))}
    one, both = ladder_from_graph(GRAPH, deployments, WORKLOAD, machine()).rungs
    assert both.devices == 1
    assert both.tokens_per_second == pytest.approx(one.tokens_per_second)


def test_the_bytes_between_rungs_are_those_of_the_difference_of_their_plans() -> None:
    ladder = modelled()
    expected = difference(DEPLOYMENTS["one"], DEPLOYMENTS["four"], GRAPH, 16).total_bytes
    assert ladder.bytes_between("one", "four") == expected > 0
    assert ladder.bytes_between("two", "one") < ladder.bytes_between("one", "four")


def test_best_cv_lets_the_stages_grow_with_its_square_root() -> None:
    assert best_cv(4, coarsest=4) == 1.0
    for stages in (8, 16, 32):
        assert stages == pytest.approx(4 * math.sqrt(best_cv(stages, coarsest=4) / 3))
    assert [each.best_cv for each in modelled().rungs] == [1.0, 12.0, 48.0]


def test_a_model_without_costs_has_no_throughput() -> None:
    free = analytic_graph(
        SIZES,
        [2] * 8,
        [8],
        DeviceFigures(flops_per_second=math.inf, memory_bytes_per_second=math.inf),
    )
    with pytest.raises(UserError, match="rung 'one': tokens_per_second must be a finite number"):
        ladder_from_graph(free, {"one": DEPLOYMENTS["one"]}, WORKLOAD, machine())


def test_a_ladder_names_what_is_wrong_with_it() -> None:
    with pytest.raises(UserError, match="at least one rung"):
        Ladder(())
    with pytest.raises(UserError, match="pipeline-2 is repeated"):
        Ladder((rung(2), rung(2)))
    with pytest.raises(UserError, match="pipeline-2 and pipeline-1 hold 2 and 1 devices; sort"):
        Ladder((rung(2), rung(1)))
    with pytest.raises(UserError, match=r"each pair of two rungs and no other; see \('pipeline-2'"):
        Ladder((rung(1), rung(2)), {("pipeline-1", "pipeline-2"): 5})
    with pytest.raises(
        UserError, match="no rung 'x'; it has pipeline-1, pipeline-2 and pipeline-4"
    ):
        LADDER.rung("x")


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens_per_second", 0.0), ("latency_seconds", math.nan), ("kv_tokens", 0), ("devices", -1)],
)
def test_a_rung_names_the_figure_that_is_wrong(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"rung 'pipeline-1': {name} must be a finite number"):
        rung(1, **{name: value})


def test_a_ladder_without_bytes_counts_none() -> None:
    assert Ladder((rung(1), rung(2))).bytes_between("pipeline-1", "pipeline-2") == 0
    assert LADDER.bytes_between(NAMES[0], NAMES[2]) == 2 * GIGABYTE
    assert deployment(2) == LADDER.rung("pipeline-2").deployment
