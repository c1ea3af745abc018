"""What walks over nodes say of placements is true of all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fjx.sharding.partition.needs import PlanNeed
from fjx.sharding.placement.device_scorers import FlexPipeDeviceScorer, FragmentScorer
from fjx.sharding.placement.rows import NEVER, Rows
from fjx.sharding.placement.walk import Routes
from fjx.sharding.topology.fleet import Fleet
from fjx.sharding.topology.topology import Topology
from tests.unit.sharding.placement.placement_cases import (
    LINKS,
    all_placements,
    cluster,
    need,
    plans,
    topologies,
)


def routes_of(fleet: Fleet, plan: PlanNeed, limit: int = NEVER - 1, *, ours: bool = True) -> Routes:
    scorer = FragmentScorer() if ours else FlexPipeDeviceScorer()
    rows = Rows.of(fleet, plan)
    return Routes(rows, limit, scorer.price(fleet, plan)[list(rows.stages)].astype(np.float64))


@given(topologies(), plans(), st.sampled_from([2, 4, 8, NEVER]), st.booleans(), st.data())
@settings(max_examples=300)
def test_no_placement_is_below_the_bounds(
    topology: Topology, plan: PlanNeed, milliseconds: int, ours: bool, data: st.DataObject
) -> None:
    fleet, limit = Fleet.of(topology), min(milliseconds * 10**9, NEVER - 1)
    routes = routes_of(fleet, plan, limit, ours=ours)
    every = [
        routes.found(np.concatenate(placement.indices))
        for placement in all_placements(fleet, plan)
        if routes.rows.row_times(np.concatenate(placement.indices)).max() <= limit
    ]
    assume(every)
    weight = data.draw(st.sampled_from([0, 1, routes.weight]))
    assert routes.bound(weight) <= min(routes.key(each, weight) for each in every)
    least = min(each.travel for each in every)
    assert routes.least_travel <= least
    if routes.weight:
        assert routes.travel_of(routes.bound(routes.weight)) <= least
    best = routes.best(weight)
    if best is not None:
        assert any(np.array_equal(best.devices, each.devices) for each in every)


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_walk_fills_nodes_and_racks_before_it_leaves_them(tensor: int) -> None:
    free = {f"n{i}": [8] * (2 * tensor) for i in range(12)}
    racks = {name: f"r{i // 3}" for i, name in enumerate(free)}
    fleet = Fleet.of(cluster(free, racks=racks, links=LINKS))
    routes = routes_of(fleet, need(*[5] * 8, tensor=tensor))
    best = routes.best(routes.weight)
    assert best is not None
    nodes = fleet.node[best.devices]
    assert [len(list(same)) for _, same in itertools.groupby(nodes)] == [2 * tensor] * 4
    rows_of_rack = [len(list(same)) for _, same in itertools.groupby(fleet.rack[nodes])]
    assert sorted(rows_of_rack) == [2 * tensor, 6 * tensor]
    # Four hops on nodes, two in a rack, one between racks.
    assert best.travel == routes.least_travel == (4 * 1 + 2 * 2 + 1 * 4) * 10**9


def test_a_walk_comes_to_no_node_twice() -> None:
    # All would like the first node best: only there is nothing stranded.
    free = {f"n{i}": [5 + i / 8, 5 + i / 8] for i in range(8)}
    routes = routes_of(Fleet.of(cluster(free, links=LINKS)), need(*[5] * 6))
    best = routes.best(routes.weight)
    assert best is not None
    assert sorted(best.devices) == [0, 1, 2, 3, 4, 5]
    # Walks that may come back could use the first two nodes again.
    assert routes.bound(routes.weight) < routes.key(best, routes.weight)


def test_a_node_whose_devices_suit_too_few_rows_is_filled_with_less() -> None:
    # Each node has room for two stages, and for one large one.
    fleet = Fleet.of(cluster({f"n{i}": [9, 3] for i in range(4)}, links=LINKS))
    routes = routes_of(fleet, need(8, 8, 2, 2))
    best = routes.best(routes.weight)
    assert best is not None
    assert fleet.free_bytes[best.devices].tolist()[:2] == [9 * 2**30] * 2
