"""The planner finds the best plan: checked against all plans, one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.errors import MemoryFitError, MeshError
from fjx.sharding.costs.difference import difference
from fjx.sharding.costs.figures import Place, Workload, plan_figures
from fjx.sharding.costs.graph import GranuleGraph, PieceCost
from fjx.sharding.partition.partition import partition
from fjx.sharding.plan.plan import Device, Mesh, Plan, Stage
from fjx.sharding.topology.topology import Link

WORKLOAD = Workload(rows=8, kv_tokens=10, copied_tokens=4)


def piece(seconds: float, size: int = 0, kv: int = 0, activation: int = 0) -> PieceCost:
    return PieceCost(
        layers=1,
        split_parameter_bytes=12 * size,
        whole_parameter_bytes=size,
        kv_bytes_per_token=12 * kv,
        seconds=((1, (seconds,)),),
        activation_bytes=(activation,),
    )


def graph(
    *granules: PieceCost, embed: PieceCost | None = None, head: PieceCost | None = None
) -> GranuleGraph:
    return GranuleGraph(
        model="toy",
        buckets=(8,),
        embed=embed or piece(0),
        granules=granules,
        head=head or piece(0),
    )


def mesh(*indices: int) -> Mesh:
    return Mesh(tuple(Device("h", "gpu", i) for i in indices), (("tensor", len(indices)),))


def places(number: int, **changes: float) -> list[Place]:
    return [Place(mesh(i), **changes) for i in range(number)]  # type: ignore[arg-type]


def all_plans(granules: int, where: list[Place]) -> Iterator[Plan]:
    for cuts in itertools.combinations(range(1, granules), len(where) - 1):
        ends = itertools.pairwise((0, *cuts, granules))
        yield Plan(tuple(Stage(range(*run), p.mesh) for run, p in zip(ends, where, strict=True)))


def sizes(plan: Plan) -> list[int]:
    return [len(stage.granules) for stage in plan.stages]


# Whole milliseconds, and speeds and degrees that divide them without rest: ties are common, and the
# checker's sums are exact.
pieces = st.builds(
    piece,
    seconds=st.sampled_from([0.0, 0.001, 0.002]),
    size=st.integers(0, 3),
    kv=st.integers(0, 2),
    activation=st.sampled_from([0, 1000, 5000]),
)
graphs = st.builds(
    lambda granules, embed, head: graph(*granules, embed=embed, head=head),
    st.lists(pieces, min_size=1, max_size=8),
    pieces,
    pieces,
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[GranuleGraph, list[Place], Plan | None]:
    costs = draw(graphs)
    granules = len(costs.granules)

    def some_places() -> list[Place]:
        number = draw(st.integers(1, min(3, granules)))
        free = iter(draw(st.permutations(range(12))))
        return [
            Place(
                mesh(*itertools.islice(free, draw(st.sampled_from([1, 2, 4])))),
                free_bytes=draw(st.sampled_from([10**9, 400, 250, 120])),
                speed=draw(st.sampled_from([1.0, 2.0, 0.5])),
                link=draw(st.sampled_from([Link(), Link(1e6, 0.001)])),
            )
            for _ in range(number)
        ]

    where = some_places()
    current = None
    if draw(st.booleans()):
        current = draw(st.sampled_from(list(all_plans(granules, some_places()))))
    return costs, where, current


def rank(costs: GranuleGraph, plan: Plan, where: list[Place], current: Plan | None) -> object:
    """Slowest stage in picoseconds, then bytes moved; None where the plan does not fit."""
    figures = plan_figures(costs, plan, where, WORKLOAD)
    if any(stage.needed_bytes > stage.free_bytes for stage in figures):
        return None
    moved = difference(current, plan, costs, WORKLOAD.copied_tokens).total_bytes if current else 0
    return round(max(stage.seconds for stage in figures) * 1e12), moved


@given(cases())
@settings(max_examples=300)
def test_no_plan_is_better(case: tuple[GranuleGraph, list[Place], Plan | None]) -> None:
    costs, where, current = case
    ranks = [rank(costs, plan, where, current) for plan in all_plans(len(costs.granules), where)]
    fitting = [each for each in ranks if each is not None]
    if not fitting:
        with pytest.raises(MemoryFitError):
            partition(costs, where, WORKLOAD, current=current)
    else:
        best = partition(costs, where, WORKLOAD, current=current)
        assert rank(costs, best, where, current) == min(fitting)  # type: ignore[type-var]


def test_equal_granules_are_cut_evenly() -> None:
    assert sorted(sizes(partition(graph(*[piece(0.1)] * 7), places(3), WORKLOAD))) == [2, 2, 3]
    # Two stages of three are enough for the slowest; the third and fourth share the rest.
    assert sorted(sizes(partition(graph(*[piece(0.1)] * 10), places(4), WORKLOAD))) == [2, 2, 3, 3]


def test_embed_and_head_count_where_they_run() -> None:
    costs = graph(*[piece(0.001)] * 6, embed=piece(0.002), head=piece(0.002))
    assert sizes(partition(costs, places(2), WORKLOAD)) == [3, 3]
    costs = graph(*[piece(0.001)] * 6, head=piece(0.004))
    assert sizes(partition(costs, places(2), WORKLOAD)) == [5, 1]


def test_a_faster_mesh_gets_more() -> None:
    where = [Place(mesh(0), speed=3.0), Place(mesh(1))]
    assert sizes(partition(graph(*[piece(0.001)] * 8), where, WORKLOAD)) == [6, 2]


def test_a_mesh_with_little_memory_gets_less() -> None:
    where = [Place(mesh(0), free_bytes=13 * 100 * 2), Place(mesh(1))]
    assert sizes(partition(graph(*[piece(0.001, size=100)] * 8), where, WORKLOAD)) == [2, 6]


def test_a_cut_avoids_a_slow_link_and_a_large_activation() -> None:
    granules = [piece(0.001, activation=10**6 if i == 3 else 10) for i in range(8)]
    slow = [Place(mesh(0)), Place(mesh(1), link=Link(1e6))]
    assert sizes(partition(graph(*granules), slow, WORKLOAD)) in ([3, 5], [5, 3])


def test_among_equally_fast_plans_the_one_that_moves_least_wins() -> None:
    costs = graph(*[piece(0.001, size=100)] * 7)
    for first in (3, 4):
        current = Plan((Stage(range(first), mesh(0)), Stage(range(first, 7), mesh(1))))
        assert partition(costs, places(2), WORKLOAD, current=current).stages == current.stages


def test_what_every_device_of_a_mesh_holds_counts_for_each() -> None:
    norms = PieceCost(
        layers=1,
        split_parameter_bytes=0,
        whole_parameter_bytes=100,
        kv_bytes_per_token=0,
        seconds=((1, (0.0,)),),
        activation_bytes=(0,),
    )
    current = Plan((Stage(range(4), mesh(0)),))
    where = [Place(mesh(0, 1, 2, 3)), Place(mesh(4))]
    # Three devices lack a granule of the first stage, one lacks a granule of the second.
    assert sizes(partition(graph(*[norms] * 4), where, WORKLOAD, current=current)) == [1, 3]


def test_tolerance_trades_speed_for_fewer_bytes() -> None:
    costs = graph(*[piece(0.001, size=100)] * 8)
    current = Plan((Stage(range(5), mesh(0)), Stage(range(5, 8), mesh(1))))

    def plan(tolerance: float) -> Plan:
        return partition(costs, places(2), WORKLOAD, current=current, tolerance=tolerance)

    assert sizes(plan(0.2)) == [4, 4]
    assert sizes(plan(0.25)) == [5, 3]


def test_a_model_that_does_not_fit_is_refused_with_the_numbers() -> None:
    costs = graph(*[piece(0.001, size=1 << 20, kv=1 << 10)] * 4)
    with pytest.raises(
        MemoryFitError,
        match=r"toy does not fit: it needs 52\.5 MiB \(52 MiB of parameters, 480 KiB of KV pages "
        r"for 10 tokens; its largest piece 13\.1 MiB\), and 1 x 20 MiB and 1 x 20 MiB are free",
    ):
        partition(costs, places(2, free_bytes=20 << 20), WORKLOAD)


def test_more_stages_than_granules_are_refused() -> None:
    with pytest.raises(MeshError, match=r"toy has 3 granules and cannot have 4 stages; use 1 to 3"):
        partition(graph(*[piece(0.1)] * 3), places(4), WORKLOAD)
