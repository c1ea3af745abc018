"""The placers to compare with do what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.placement_baselines import (
    best_fit,
    first_fit,
    fragmentation_gradient,
    fragmented_bytes,
    pieces_of,
    random_fit,
)
from fjx.errors import MemoryFitError
from fjx.sharding.placement.placement import Placer
from fjx.sharding.topology.fleet import Fleet
from tests.unit.sharding.placement.placement_cases import GIB, cluster, need

FLEET = Fleet.of(cluster({"a": [9, 5, 7], "b": [6, 2]}))


def test_first_fit_takes_the_first_that_fit() -> None:
    assert first_fit(FLEET, [need(6, 5)]).indices == ((0,), (1,))


def test_best_fit_takes_the_tightest() -> None:
    assert best_fit(FLEET, [need(6, 5)]).indices == ((3,), (1,))


def test_random_fit_is_the_same_for_a_seed_and_differs_between_seeds() -> None:
    drawn = [random_fit(seed)(FLEET, [need(5, 5)]).indices for seed in range(20)]
    assert drawn == [random_fit(seed)(FLEET, [need(5, 5)]).indices for seed in range(20)]
    assert len(set(drawn)) > 5


def test_fragmented_is_what_a_typical_piece_finds_too_little() -> None:
    free = np.array([9, 5, 2])
    assert fragmented_bytes(free, {4: 0.5, 6: 0.5}).tolist() == [0, 2.5, 2]


def test_each_plan_counts_the_same_as_what_is_typical() -> None:
    assert pieces_of([need(4, 4), need(2, 1, tensor=2)]) == {
        4 * GIB: 0.5,
        2 * GIB: 0.25,
        1 * GIB: 0.25,
    }


def test_the_fragmentation_gradient_takes_where_least_is_lost_more() -> None:
    # With pieces of 5 GiB, 9 - 4 stays of use, 5 - 4 is lost as 5 never were.
    placer = fragmentation_gradient([need(5)])
    assert placer(FLEET, [need(4)]).indices == ((0,),)
    # Best fit strands 1 GiB on the second device.
    assert best_fit(FLEET, [need(4)]).indices == ((1,),)


@pytest.mark.parametrize(
    "placer",
    [first_fit, best_fit, random_fit(0), fragmentation_gradient()],
    ids=["first fit", "best fit", "random fit", "fragmentation gradient"],
)
def test_every_placer_keeps_the_rules(placer: Placer) -> None:
    placement = placer(FLEET, [need(20), need(5, 5, 5), need(2, 2)])
    assert len(placement.need.stages) == 3  # the first that fits
    devices = [index for indices in placement.indices for index in indices]
    assert len(set(devices)) == 3
    assert all(FLEET.free_bytes[index] >= 5 * GIB for index in devices)
    assert {d.host for d in placer(FLEET, [need(6, tensor=2)]).stages[0].mesh.devices} == {"a"}
    with pytest.raises(MemoryFitError):
        placer(FLEET, [need(*[2] * 6)])
