"""Stages get the best devices: checked against all placements, one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.placement_baselines import first_fit
from fjx.errors import MemoryFitError, MeshError
from fjx.sharding.partition.needs import PlanNeed
from fjx.sharding.placement.device_scorers import (
    Demand,
    DeviceScorer,
    FlexPipeDeviceScorer,
    FragmentScorer,
    demands_of,
)
from fjx.sharding.placement.placement import Placement, place, place_all
from fjx.sharding.topology.fleet import Fleet
from fjx.sharding.topology.topology import HostCopy, Link, Topology
from tests.unit.sharding.placement.placement_cases import (
    GIB,
    LINKS,
    WITHIN,
    all_placements,
    cluster,
    need,
    plans,
    topologies,
)


def hosts(placement: Placement) -> list[str]:
    return [stage.mesh.devices[0].host for stage in placement.stages]


def keys(placement: Placement) -> list[str]:
    return [str(device) for stage in placement.stages for device in stage.mesh.devices]


def pace(placement: Placement) -> int:
    """Device picoseconds for a microbatch."""
    return placement.need.devices * round(placement.slowest_seconds * 1e12)


def travel(placement: Placement) -> int:
    """Picoseconds of a microbatch between stages."""
    return round(placement.transfer_seconds * 1e12)


def price(fleet: Fleet, scorer: DeviceScorer, placement: Placement) -> int:
    prices = scorer.price(fleet, placement.need)
    return sum(int(prices[s, d]) for s, each in enumerate(placement.indices) for d in each)


@given(
    topologies(),
    st.lists(plans(), min_size=1, max_size=2),
    st.sampled_from([0.0, 0.5, float("inf")]),
    st.sampled_from([0.0, 0.5, float("inf")]),
    st.booleans(),
)
@settings(max_examples=300)
def test_no_placement_is_better(
    topology: Topology,
    candidates: list[PlanNeed],
    tolerance: float,
    hop_tolerance: float,
    ours: bool,
) -> None:
    fleet = Fleet.of(topology)
    scorer: DeviceScorer = (
        FragmentScorer(demands_of(candidates)) if ours else FlexPipeDeviceScorer()
    )
    every = [each for plan in candidates for each in all_placements(fleet, plan)]
    options = {"scorer": scorer, "tolerance": tolerance, "hop_tolerance": hop_tolerance}
    if not every:
        with pytest.raises(MemoryFitError):
            place(fleet, candidates, **options)
        return
    fastest = min(map(pace, every))
    good = [
        each
        for each in every
        if tolerance == float("inf") or pace(each) <= fastest * (1 + tolerance)
    ]
    if hop_tolerance < float("inf"):
        passing = min(sum(stage.seconds for stage in plan.stages) for plan in candidates)
        most = min(map(travel, good)) + hop_tolerance * passing * 1e12
        good = [each for each in good if travel(each) <= most]
    best = place(fleet, candidates, **options)
    assert best.proven
    assert best in good
    assert price(fleet, scorer, best) == min(price(fleet, scorer, each) for each in good)


def test_stages_stay_together_where_links_are_slow() -> None:
    topology = cluster(
        {"a": [8], "b": [8, 8], "c": [8], "d": [8, 8, 8]},
        racks={"a": "one", "b": "one", "c": "two", "d": "two"},
        links=LINKS,
    )
    fleet = Fleet.of(topology)
    assert hosts(place(fleet, [need(5, 5, 5)])) == ["d", "d", "d"]
    four = place(fleet, [need(5, 5, 5, 5)])
    assert set(hosts(four)) == {"c", "d"}  # all of rack two
    # The last stage is as fast with an input from the other node, so that it can be the odd one.
    uneven = need(5, 5, 5, 5, seconds=(0.011, 0.011, 0.011, 0.01))
    assert hosts(place(fleet, [uneven])) == ["d", "d", "d", "c"]


def test_a_named_pair_may_be_the_best_way() -> None:
    pairs = ((frozenset({"a", "c"}), Link()),)
    topology = cluster({"a": [8], "b": [8], "c": [8]}, pairs=pairs, links=LINKS)
    assert sorted(hosts(place(Fleet.of(topology), [need(5, 5)]))) == ["a", "c"]


def test_of_equally_fast_places_the_one_that_strands_least_memory_wins() -> None:
    fleet = Fleet.of(cluster({"a": [12, 10, 8, 5]}))
    scorer = FragmentScorer(demands_of([need(4.9), need(11.9, model="large")]))
    # 10 GiB hold two pieces, 12 GiB the other model's; of 8 GiB 3 are of no use.
    assert keys(place(fleet, [need(3)], scorer=scorer)) == ["a/gpu:2"]
    assert keys(place(fleet, [need(8)], scorer=scorer)) == ["a/gpu:2"]
    assert keys(place(fleet, [need(12)], scorer=scorer)) == ["a/gpu:0"]


def test_of_those_the_one_whose_node_holds_the_parameters_wins() -> None:
    copies = (HostCopy(host="b", model="toy", granules=frozenset({1})),)
    placement = place(Fleet.of(cluster({"a": [8], "b": [8]}, copies=copies)), [need(5, 5)])
    assert hosts(placement) == ["a", "b"]
    assert placement.cold_bytes == 5 * GIB
    assert placement.stages[1].cold_bytes == 0


def test_a_tolerance_lets_fragments_be_used() -> None:
    # On a's whole devices the stage is 2 ms faster; b has a fragment that fits.
    topology = cluster({"a": [10, 10], "b": [5]}, links=LINKS)
    fleet, plan = Fleet.of(topology), need(5, 5, seconds=0.1)
    assert hosts(place(fleet, [plan])) == ["a", "a"]
    scorer = FragmentScorer(demands_of([need(10)]))
    assert hosts(place(fleet, [plan], scorer=scorer, tolerance=0.05)) == ["a", "a"]
    assert "b" in hosts(place(fleet, [plan], scorer=scorer, tolerance=0.05, hop_tolerance=0.02))


def test_stages_hop_between_nodes_as_seldom_as_they_can() -> None:
    # The first devices that fit lie on four nodes; whichever they are, the slowest stage waits
    # for an input from another node.
    topology = cluster({"a": [8], "b": [8], "c": [8], "d": [8, 8], "e": [8, 8]}, links=LINKS)
    fleet, plan = Fleet.of(topology), need(5, 5, 5, 5)
    short = place(fleet, [plan])
    assert short.proven
    assert hosts(short) in (["d", "d", "e", "e"], ["e", "e", "d", "d"])
    assert short.slowest_seconds == first_fit(fleet, [plan]).slowest_seconds
    assert short.transfer_seconds == pytest.approx(0.006)
    assert first_fit(fleet, [plan]).transfer_seconds == pytest.approx(0.012)


def test_hops_are_compared_between_granularities() -> None:
    # Every link is alike. The two halves fill fragments that are of no use to the whole.
    links = (WITHIN, WITHIN, WITHIN)
    fleet = Fleet.of(cluster({"a": [20], "b": [5, 5]}, links=links))
    coarse, fine = need(10, seconds=0.1), need(5, 5, seconds=0.05)
    scorer = FragmentScorer((Demand((20 * GIB,)),))
    options = {"scorer": scorer, "tolerance": float("inf")}
    assert place(fleet, [fine, coarse], **options).need is coarse
    assert place(fleet, [fine, coarse], hop_tolerance=0.005, **options).need is coarse
    assert place(fleet, [fine, coarse], hop_tolerance=0.01, **options).need is fine


def test_hops_in_a_large_fleet_are_proven_to_be_the_least() -> None:
    free = {f"n{i}": [8] * (1 + i % 4) for i in range(400)}
    racks = {name: f"r{i // 8}" for i, name in enumerate(free)}
    fleet = Fleet.of(cluster(free, racks=racks, links=LINKS))
    # A rack has two nodes each of one to four devices.
    placement = place(fleet, [need(*[6] * 24)])
    nodes = [len(list(same)) for _, same in itertools.groupby(hosts(placement))]
    assert sorted(nodes) == [2, 3, 3, 4, 4, 4, 4]
    assert len({racks[host] for host in hosts(placement)}) == 2


def test_the_granularity_is_the_one_that_takes_the_least_of_devices_and_time() -> None:
    coarse, fine = need(10, 10, seconds=0.02), need(5, 5, 5, 5, seconds=0.0105)
    roomy = Fleet.of(cluster({"a": [12] * 4}))
    assert place(roomy, [fine, coarse]).need is coarse
    odd = Fleet.of(cluster({"a": [10, 10, 5, 5, 5, 5]}))
    scorer = FragmentScorer((Demand((10 * GIB,)),))
    assert place(odd, [fine, coarse], scorer=scorer).need is coarse
    assert place(odd, [fine, coarse], scorer=scorer, tolerance=0.05).need is fine
    tight = Fleet.of(cluster({"a": [8] * 4}))
    assert place(tight, [coarse, fine]).need is fine


def test_shards_of_a_stage_are_on_one_node() -> None:
    topology = cluster({"a": [8, 4, 8], "b": [8, 8], "c": [8]})
    placement = place(Fleet.of(topology), [need(5, 5, tensor=2)])
    assert [len({d.host for d in stage.mesh.devices}) for stage in placement.stages] == [1, 1]
    assert sorted(hosts(placement)) == ["a", "b"]
    with pytest.raises(MemoryFitError):
        place(Fleet.of(topology), [need(5, 5, 5, tensor=2)])


def test_stages_share_a_device_only_when_told_so() -> None:
    fleet = Fleet.of(cluster({"a": [12], "b": [4]}))
    with pytest.raises(MemoryFitError):
        place(fleet, [need(5, 5)])
    placement = place(fleet, [need(5, 5, seconds=0.01)], stages_per_device=2)
    assert keys(placement) == ["a/gpu:0", "a/gpu:0"]
    assert placement.slowest_seconds == pytest.approx(0.02)
    assert placement.plan.shared_devices
    with pytest.raises(MeshError, match="cannot be split over several"):
        place(fleet, [need(5, tensor=2)], stages_per_device=2)


def test_models_are_placed_in_what_others_left() -> None:
    fleet = Fleet.of(cluster({"a": [12, 6]}))
    one, two, three = place_all(fleet, [[need(6)], [need(6)], [need(6)]])
    assert sorted(keys(one) + keys(two) + keys(three)) == ["a/gpu:0", "a/gpu:0", "a/gpu:1"]
    left = three.occupy(two.occupy(one.occupy(fleet)))
    assert left.free_bytes.tolist() == [0, 0]
    assert left.tenants.tolist() == [2, 1]
    with pytest.raises(MemoryFitError):
        place_all(fleet, [[need(6)]] * 4)


def test_a_placement_is_a_plan() -> None:
    plan = place(Fleet.of(cluster({"a": [8, 8]})), [need(5, 5)]).plan
    assert plan.granularity == 2
    assert [str(device) for device in plan.devices] == ["a/gpu:0", "a/gpu:1"]


def test_the_same_input_gives_the_same_placement() -> None:
    fleet = Fleet.of(cluster({f"n{i}": [8] * 4 for i in range(20)}, links=LINKS))
    assert place(fleet, [need(*[5] * 6)]) == place(fleet, [need(*[5] * 6)])


def test_a_search_that_is_cut_short_still_places_and_says_so() -> None:
    # Each pair of stages would like the node with the least to strand best.
    topology = cluster({f"n{i}": [5 + i / 4, 6 + i / 4] for i in range(6)}, links=LINKS)
    fleet, plan = Fleet.of(topology), need(*[5, 6] * 3)
    placement = place(fleet, [plan], effort=3)
    assert not placement.proven
    assert len(set(keys(placement))) == 6


def test_shards_find_their_nodes_in_a_large_fleet() -> None:
    free = {f"n{i}": [8] * (1 + i % 4) for i in range(400)}
    topology = cluster(free, racks={name: f"r{i // 8}" for i, name in enumerate(free)})
    plan = need(*[6] * 16, tensor=4)
    for tolerance in (0.0, float("inf")):
        placement = place(Fleet.of(topology), [plan], tolerance=tolerance)
        assert len(set(hosts(placement))) == 16
        assert all(len({d.host for d in s.mesh.devices}) == 1 for s in placement.stages)


def test_a_plan_that_fits_nowhere_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        MemoryFitError,
        match=r"toy does not fit on 2 devices: it needs 1 stage with up to 20 GiB on each of 1 "
        r"device or 2 stages with up to 9 GiB on each of 2 devices, and 16 GiB are free, at most "
        r"8 GiB on one device; use more stages",
    ):
        place(Fleet.of(cluster({"a": [8, 8]})), [need(20), need(9, 9)])


def test_an_argument_out_of_its_range_is_refused() -> None:
    fleet = Fleet.of(cluster({"a": [8]}))
    with pytest.raises(MeshError, match="at least one candidate"):
        place(fleet, [])
    with pytest.raises(MeshError, match=r"tolerance must be at least 0, got -0\.1"):
        place(fleet, [need(1)], tolerance=-0.1)
    with pytest.raises(MeshError, match=r"hop_tolerance must be at least 0, got -0\.1"):
        place(fleet, [need(1)], hop_tolerance=-0.1)
    with pytest.raises(MeshError, match="stages_per_device must be at least 1, got 0"):
        place(fleet, [need(1)], stages_per_device=0)
