"""The table and the picture of a placement show where the stages are, and are readable."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fjx.plots.placement import placement_svg
from fjx.sharding.placement.device_scorers import demands_of
from fjx.sharding.placement.placement import place, place_all
from fjx.sharding.placement.placement_table import placement_table
from fjx.sharding.topology.fleet import Fleet
from fjx.sharding.topology.topology import UNKNOWN_MEMORY
from tests.unit.plots.picture_cases import check_readable, texts_of
from tests.unit.sharding.placement.placement_cases import GIB, LINKS, cluster, need


def drawn(nodes: int, devices: int, racks: int, free: float, stages: int) -> str:
    topology = cluster(
        {f"compute-node-{i}": [free] * devices for i in range(nodes)},
        racks={f"compute-node-{i}": f"rack-{i * racks // nodes}" for i in range(nodes - 1)},
        links=LINKS,
    )
    fleet = Fleet.of(topology)
    plan = need(*[2] * stages)
    return placement_svg(fleet, place_all(fleet, [[plan], [plan]]), demands_of([plan]))


@pytest.mark.parametrize(
    ("nodes", "devices", "racks", "stages"),
    [
        (4, 1, 1, 1),
        (3, 8, 1, 4),
        (9, 4, 3, 8),
        (200, 2, 2, 5),
        (500, 2, 9, 70),
        (60, 1, 30, 3),
        (4, 40, 2, 30),
    ],
)
@pytest.mark.parametrize("free", [8, UNKNOWN_MEMORY / GIB])
def test_no_text_of_the_picture_covers_another_or_leaves_it(
    nodes: int, devices: int, racks: int, stages: int, free: float
) -> None:
    check_readable(drawn(nodes, devices, racks, free, stages))


def test_devices_have_names_and_say_their_stage_and_what_is_left() -> None:
    topology = cluster({"a": [5, 3], "b": [9]}, racks={"a": "one", "b": "one"}, links=LINKS)
    fleet = Fleet.of(topology)
    plan = need(4, 2)
    placement = place_all(fleet, [[plan]])
    picture = placement_svg(fleet, placement, demands_of([plan]))
    texts = texts_of(picture)
    for expected in ("a", "b", "stage 1", "stage 2", "same node", "1 GiB left", "9 GiB free"):
        assert expected in texts
    assert texts[0] == "toy: 2 stages on 2 of 3 devices"


def test_several_stages_on_a_device_are_all_named() -> None:
    topology = cluster({"a": [20]}, racks={}, links=LINKS)
    fleet = Fleet.of(topology)
    plan = need(1, 1, 1)
    placement = place(fleet, [plan], stages_per_device=3)
    picture = placement_svg(fleet, [placement], demands_of([plan]))
    check_readable(picture)
    assert "stages 1-3" in texts_of(picture)


def test_names_of_any_length_and_devices_without_room_can_be_read() -> None:
    names = [f"{'very-long-' * 9}name-{i}.example.org" for i in range(9)]
    topology = cluster(
        {name: [0.0] * 3 + [4.0] for name in names},
        racks=dict.fromkeys(names, "r" * 200),
        links=LINKS,
    )
    fleet = Fleet.of(topology)
    plan = replace(need(*[2] * 5), model="model-" * 40)
    picture = placement_svg(fleet, place_all(fleet, [[plan]]), demands_of([plan]))
    check_readable(picture)
    texts = texts_of(picture)
    assert sum(text.endswith(".example.org") for text in texts) == 5
    assert texts[0].endswith("-model-: 5 stages on 5 of 36 devices")
    assert any(text.endswith("rrr: 9 nodes, 36 devices, 36 GiB free") for text in texts)


def test_racks_without_stages_are_a_line_each_and_the_rest_is_counted() -> None:
    texts = texts_of(drawn(60, 1, 30, 8, 2))
    # Two are drawn, and the node without a rack counts as one of its own.
    assert sum(text.endswith(": 2 nodes, 2 devices, 16 GiB free") for text in texts) == 2 + 12
    assert "17 more racks: 32 nodes, 32 devices, 256 GiB free" in texts


def test_the_table_says_how_far_the_next_stage_is() -> None:
    topology = cluster(
        {"a": [5, 5], "b": [5], "c": [5]},
        racks={"a": "one", "b": "one"},
        links=LINKS,
    )
    fleet = Fleet.of(topology)
    plan = need(4, 4, 4, 4, sent_bytes=10**6)
    lines = placement_table(fleet, place_all(fleet, [[plan]]), demands_of([plan])).splitlines()
    ways = {line.rpartition("  ")[2] for line in lines[2:5]}
    assert ways == {"same node, 2 ms", "same rack, 3 ms", "other rack, 5 ms"}
    assert lines[-1].startswith("16 GiB to load cold; stranded memory ")
    assert lines[-1].endswith(" before, 4 GiB after")
