"""What makes a device dear: stranded memory, cold parameters; and FlexPipe's terms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.errors import MeshError
from fjx.sharding.placement.device_scorers import (
    Demand,
    FlexPipeDeviceScorer,
    FragmentScorer,
    demands_of,
    stranded_bytes,
)
from fjx.sharding.placement.placement import place
from fjx.sharding.topology.fleet import Fleet
from fjx.sharding.topology.topology import UNKNOWN_MEMORY, HostCopy
from tests.unit.sharding.placement.placement_cases import GIB, cluster, need


def test_stranded_is_what_no_mixture_of_pieces_can_use() -> None:
    free = np.array([10, 7, 3, 0, UNKNOWN_MEMORY])
    assert stranded_bytes(free, [Demand((4,))]).tolist() == [2, 3, 3, 0, 0]
    assert stranded_bytes(free, [Demand((3, 4))]).tolist() == [0, 0, 0, 0, 0]
    assert stranded_bytes(free, [Demand((4,)), Demand((10,), 3)]).tolist() == [0.5, 6, 3, 0, 0]


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=6),
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
)
def test_stranded_is_the_least_of_all_ways_to_fill_a_device(
    free: list[int], sizes: list[int]
) -> None:
    def left(room: int) -> int:
        return min([room, *(left(room - size) for size in sizes if 5 <= size <= room)])

    sizes = [max(5, size) for size in sizes]
    stranded = stranded_bytes(np.array(free), [Demand(tuple(sizes))])
    assert stranded.tolist() == [left(room) for room in free]


def test_a_stage_that_fills_a_fragment_has_a_negative_price() -> None:
    fleet = Fleet.of(cluster({"a": [8, 5]}))
    scorer = FragmentScorer((Demand((6 * GIB,)),))
    stranded = scorer.terms(fleet, need(5))["stranded"] / GIB
    # 8 GiB had 2 left over, and now 3, which are too few for another piece; 5 GiB were lost.
    assert stranded.tolist() == [pytest.approx([1, -5], abs=0.02)]
    assert scorer.price(fleet, need(5)).argmin() == 1


def test_cold_parameters_decide_only_where_as_much_memory_is_stranded() -> None:
    copies = (HostCopy(host="b", model="toy"),)
    scorer = FragmentScorer((Demand((int(3.9 * GIB),)),))
    fleet = Fleet.of(cluster({"a": [5], "b": [5]}, copies=copies))
    assert scorer.terms(fleet, need(4))["cold"].tolist() == [[4 * GIB, 0]]
    assert scorer.price(fleet, need(4)).argmin() == 1
    # On b a piece of 4 GiB would fit no more; of a, 3.5 GiB were of no use.
    fleet = Fleet.of(cluster({"a": [7.5], "b": [4]}, copies=copies))
    assert scorer.price(fleet, need(3)).argmin() == 0


def test_only_the_granules_that_a_node_holds_are_warm() -> None:
    copies = (HostCopy(host="a", model="toy", granules=frozenset({1, 99})),)
    fleet = Fleet.of(cluster({"a": [8], "b": [8]}, copies=copies))
    cold = FragmentScorer().terms(fleet, need(1, 2))["cold"] / GIB
    assert cold.tolist() == [[1, 1], [0, 2]]
    assert (
        FragmentScorer().terms(fleet, need(1, 2, model="other"))["cold"].tolist()[1][0] == 2 * GIB
    )


def test_flexpipe_prefers_hosts_that_served_the_model_lately() -> None:
    copies = (
        HostCopy(host="b", model="toy", age_seconds=300),
        HostCopy(host="c", model="toy", age_seconds=10),
        HostCopy(host="a", model="other"),
    )
    fleet = Fleet.of(cluster({"a": [8], "b": [8], "c": [8, 1]}, copies=copies))
    affinity = FlexPipeDeviceScorer(decay=1 / 300).terms(fleet, need(5))["affinity"][0]
    assert affinity == pytest.approx(
        [0, math.exp(-1) + 1, *[math.exp(-1 / 30) + 0.5] * 2], abs=1e-9
    )
    assert place(fleet, [need(5)], scorer=FlexPipeDeviceScorer(device_weight=0)).indices == ((2,),)


def test_flexpipe_avoids_devices_of_others_the_more_the_burstier_the_arrivals() -> None:
    topology = cluster({"a": [8, 8]}, speeds={"a": 2.0})
    states = (replace(topology.devices[0], tenants=1), topology.devices[1])
    fleet = Fleet.of(replace(topology, devices=states))
    calm, bursty = (
        FlexPipeDeviceScorer(cv=cv, sharing_weight=0.5, burst_weight=0.1).terms(fleet, need(5))[
            "sharing"
        ]
        for cv in (1.0, 4.0)
    )
    assert calm[0] == pytest.approx([-0.5 * 1.1, 0])
    assert bursty[0] == pytest.approx([-0.5 * 2.6, 0])
    assert place(fleet, [need(5)], scorer=FlexPipeDeviceScorer()).indices == ((1,),)


def test_demands_are_the_models_of_plans_in_all_their_pieces() -> None:
    plans = [need(4, 4), need(2, 1, tensor=2), need(7, model="other")]
    assert demands_of(plans) == (Demand((GIB, 2 * GIB, 4 * GIB)), Demand((7 * GIB,)))


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(MeshError, match="a demand needs sizes above 0"):
        Demand((4, 0))
    with pytest.raises(MeshError, match="cv must be at least 0"):
        FlexPipeDeviceScorer(cv=-1)
