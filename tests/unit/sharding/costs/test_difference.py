"""The bytes of a plan difference are those that devices lack, checked on real byte positions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.errors import MeshError
from fjx.sharding.costs.difference import difference, received_bytes
from fjx.sharding.costs.graph import GranuleGraph, PieceCost
from fjx.sharding.plan.plan import Deployment, Device, Mesh, Plan, Stage

TOKENS = 3


def piece(split: int = 0, whole: int = 0, kv: int = 0) -> PieceCost:
    return PieceCost(
        layers=1,
        split_parameter_bytes=split,
        whole_parameter_bytes=whole,
        kv_bytes_per_token=kv,
        seconds=((1, (0.001,)),),
        activation_bytes=(1,),
    )


GRAPH = GranuleGraph(
    model="toy",
    buckets=(1,),
    embed=piece(split=240),
    granules=(piece(120, 7, 12),) * 4,
    head=piece(split=240, whole=5),
)


def mesh(*indices: int) -> Mesh:
    return Mesh(tuple(Device("h", "gpu", i) for i in indices), (("tensor", len(indices)),))


def plan(*stages: tuple[int, Mesh], shared_devices: bool = False) -> Plan:
    ends = list(itertools.accumulate((count for count, _ in stages), initial=0))
    runs = [range(*run) for run in itertools.pairwise(ends)]
    made = tuple(Stage(run, on) for run, (_, on) in zip(runs, stages, strict=True))
    return Plan(made, shared_devices=shared_devices)


def holdings(on: Mesh, cost: PieceCost) -> dict[Device, set[tuple[str, int]]]:
    """Every single byte that each device of a mesh holds."""
    held = {}
    for index, device in enumerate(on.devices):
        part = {("whole", i) for i in range(cost.whole_parameter_bytes)}
        for name, size in (
            ("split", cost.split_parameter_bytes),
            ("kv", cost.kv_bytes_per_token * TOKENS),
        ):
            width = size // on.tensor
            part |= {(name, i) for i in range(index * width, (index + 1) * width)}
        held[device] = part
    return held


meshes = st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True).map(lambda i: mesh(*i))


@given(meshes, meshes)
def test_a_device_gets_the_bytes_that_it_lacks(source: Mesh, target: Mesh) -> None:
    cost = GRAPH.granules[0]
    before, after = holdings(source, cost), holdings(target, cost)
    for each in received_bytes(cost, source, target, TOKENS):
        lacking = after[each.device] - before.get(each.device, set())
        assert each.kv_bytes == sum(name == "kv" for name, _ in lacking)
        assert each.parameter_bytes == len(lacking) - each.kv_bytes


def test_a_plan_does_not_differ_from_itself() -> None:
    same = plan((2, mesh(0, 1)), (2, mesh(2)))
    assert difference(same, same, GRAPH, TOKENS).moves == ()


def test_a_split_moves_the_granules_of_the_new_stage_and_the_head() -> None:
    found = difference(plan((4, mesh(0))), plan((3, mesh(0)), (1, mesh(1))), GRAPH, TOKENS)
    assert [move.piece for move in found.moves] == ["granule 3", "head"]
    assert found.parameter_bytes == (120 + 7) + (240 + 5)
    assert found.kv_bytes == 12 * TOKENS
    assert found.received() == {Device("h", "gpu", 1): 127 + 245 + 36}


def test_a_merge_brings_them_back() -> None:
    one, two = plan((4, mesh(0))), plan((3, mesh(0)), (1, mesh(1)))
    there = difference(one, two, GRAPH, TOKENS).total_bytes
    assert difference(two, one, GRAPH, TOKENS).total_bytes == there


def test_a_higher_tensor_degree_moves_only_the_other_devices_shares() -> None:
    found = difference(plan((4, mesh(0))), plan((4, mesh(0, 1))), GRAPH, TOKENS)
    assert found.received() == {
        Device("h", "gpu", 1): 240 // 2 + 4 * (120 // 2 + 7 + 12 * TOKENS // 2) + 240 // 2 + 5
    }


def test_devices_in_another_order_exchange_their_shares() -> None:
    found = difference(plan((4, mesh(0, 1))), plan((4, mesh(1, 0))), GRAPH)
    assert found.parameter_bytes == 240 + 4 * 120 + 240  # what is not split stays


def test_a_new_replica_takes_parameters_from_the_nearest_and_no_kv_pages() -> None:
    old = Deployment((plan((4, mesh(0))), plan((4, mesh(1)))))
    new = Deployment((*old.replicas, plan((4, mesh(2)))))
    found = difference(old, new, GRAPH, (TOKENS, TOKENS))
    assert {move.replica for move in found.moves} == {2}
    assert found.parameter_bytes == 240 + 4 * 127 + 245
    assert found.kv_bytes == 0
    onto_old_device = Deployment((plan((4, mesh(2))), plan((4, mesh(3))), plan((4, mesh(1)))))
    assert {move.replica for move in difference(old, onto_old_device, GRAPH).moves} == {0, 1}


def test_a_replica_without_a_successor_moves_nothing() -> None:
    old = Deployment((plan((4, mesh(0))), plan((4, mesh(1)))))
    found = difference(old, old.replicas[0], GRAPH, (1, 2))
    assert found.moves == ()


def test_each_replica_moves_its_own_kv_pages() -> None:
    old = Deployment((plan((4, mesh(0))), plan((4, mesh(1)))))
    new = Deployment((plan((4, mesh(0))), plan((4, mesh(2)))))
    assert difference(old, new, GRAPH, (100, 2)).kv_bytes == 4 * 12 * 2
    with pytest.raises(MeshError, match="1 entry, expected one for each of 2 old replicas"):
        difference(old, new, GRAPH, [100])


def test_parts_of_bytes_are_refused() -> None:
    with pytest.raises(MeshError, match="120 bytes do not split into equal parts"):
        received_bytes(piece(split=120), None, mesh(*range(7)), 0)


def test_stages_on_one_device_move_nothing_between_them() -> None:
    one = plan((4, mesh(0)))
    two = plan((2, mesh(0)), (2, mesh(0)), shared_devices=True)
    assert difference(one, two, GRAPH, TOKENS).moves == ()
