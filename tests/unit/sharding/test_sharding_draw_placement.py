"""The table and the picture of a placement show where the stages are, and are readable."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree

import pytest

from fjx.sharding.draw_placement import placement_svg
from fjx.sharding.fleet import Fleet
from fjx.sharding.placement import place_all
from fjx.sharding.placement_scorers import demands_of
from fjx.sharding.placement_table import placement_table
from fjx.sharding.svg import text_width
from fjx.sharding.topology import UNKNOWN_MEMORY
from tests.unit.sharding.placement_cases import BETWEEN, GIB, RACK, WITHIN, cluster, need

SVG = "{http://www.w3.org/2000/svg}"


def drawn(nodes: int, devices: int, racks: int, free: float, stages: int) -> str:
    topology = cluster(
        {f"compute-node-{i}": [free] * devices for i in range(nodes)},
        racks={f"compute-node-{i}": f"rack-{i * racks // nodes}" for i in range(nodes - 1)},
        links=(WITHIN, RACK, BETWEEN),
    )
    fleet = Fleet.of(topology)
    plan = need(*[2] * stages)
    return placement_svg(fleet, place_all(fleet, [[plan], [plan]]), demands_of([plan]))


@pytest.mark.parametrize(
    ("nodes", "devices", "racks", "stages"),
    [(4, 1, 1, 1), (3, 8, 1, 4), (9, 4, 3, 8), (200, 2, 2, 5), (60, 1, 30, 3), (4, 40, 2, 30)],
)
@pytest.mark.parametrize("free", [8, UNKNOWN_MEMORY / GIB])
def test_no_text_of_the_picture_covers_another_or_leaves_it(
    nodes: int, devices: int, racks: int, stages: int, free: float
) -> None:
    root = ElementTree.fromstring(drawn(nodes, devices, racks, free, stages))
    height, boxes = float(root.attrib["height"]), []
    for text in root.iter(f"{SVG}text"):
        size, words = float(text.attrib["font-size"]), text.text or ""
        width = text_width(words, size)
        shift = {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]]
        x, bottom = float(text.attrib["x"]) - shift * width, float(text.attrib["y"])
        boxes.append((x, bottom - 0.75 * size, x + width, bottom, words))
        assert x >= 0
        assert x + width <= 1000
        assert bottom <= height
        assert size >= 10
    for one, other in itertools.combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


def test_racks_without_stages_are_a_line_each_and_the_rest_is_counted() -> None:
    texts = [
        t.text or "" for t in ElementTree.fromstring(drawn(60, 1, 30, 8, 2)).iter(f"{SVG}text")
    ]
    # Two are drawn, and the node without a rack counts as one of its own.
    assert sum(text.endswith(": 2 nodes, 2 devices, 16 GiB free") for text in texts) == 2 + 12
    assert "17 more racks: 32 nodes, 32 devices, 256 GiB free" in texts


def test_the_table_says_how_far_the_next_stage_is() -> None:
    topology = cluster(
        {"a": [5, 5], "b": [5], "c": [5]},
        racks={"a": "one", "b": "one"},
        links=(WITHIN, RACK, BETWEEN),
    )
    fleet = Fleet.of(topology)
    plan = need(4, 4, 4, 4, sent_bytes=10**6)
    lines = placement_table(fleet, place_all(fleet, [[plan]]), demands_of([plan])).splitlines()
    ways = {line.rpartition("  ")[2] for line in lines[2:5]}
    assert ways == {"same node, 2 ms", "same rack, 3 ms", "other rack, 5 ms"}
    assert lines[-1].startswith("16 GiB to load cold; stranded memory ")
    assert lines[-1].endswith(" before, 4 GiB after")
