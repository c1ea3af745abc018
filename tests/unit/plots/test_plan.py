"""The table and the picture of a plan show what it is, and are readable."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from importlib import util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.errors import MeshError
from fjx.plots.change import Change
from fjx.plots.palette import PAPER
from fjx.plots.plan import plan_svg, svg_to_png
from fjx.plots.svg import Canvas
from fjx.plots.timeline import draw_timeline
from fjx.sharding.costs.analytic import analytic_graph
from fjx.sharding.costs.difference import difference
from fjx.sharding.costs.figures import StageFigures, Workload
from fjx.sharding.costs.table import difference_table, plan_table, short_devices
from fjx.sharding.costs.timeline import idle_share, round_seconds, schedule
from fjx.sharding.plan.plan import Deployment, Device
from fjx.sharding.planner.assign import places_of
from fjx.sharding.planner.planner import even_mesh, plan_mesh
from fjx.sharding.topology.topology import UNKNOWN_MEMORY, DeviceState, Link, Topology
from fjx.wording import format_bytes, format_seconds
from tests.unit.plots.picture_cases import SVG, check_readable, texts_of, titled
from tests.unit.sharding.toy import FIGURES, SIZES

EIGHT_HEADS = replace(SIZES, model="toy <0.1B>", num_heads=8, num_kv_heads=8)
GRAPH = analytic_graph(EIGHT_HEADS, [1] * 64, [8], FIGURES)
WORKLOAD = Workload(rows=8, kv_tokens=64)


def machine(devices: int, hosts: tuple[str, ...] = ("localhost",), free: int = 1 << 30) -> Topology:
    states = [DeviceState(Device(h, "gpu", i), free) for h in hosts for i in range(devices)]
    return Topology(tuple(states), Link(1e8, 1e-5), Link(1e7, 1e-4))


def planned(topology: Topology, stages: int, tensor: int = 1, replicas: int = 1) -> Deployment:
    mesh = even_mesh(stages, tensor=tensor, replicas=replicas)
    return plan_mesh(mesh, topology, GRAPH, WORKLOAD)


def drawn(
    deployment: Deployment, topology: Topology, before: Deployment | None = None, kv_tokens: int = 8
) -> str:
    places = [places_of(plan, topology) for plan in deployment.replicas]
    change = None
    if before is not None:
        moved = difference(before, deployment, GRAPH, kv_tokens)
        change = Change("From one to the other", before, deployment, moved)
    return plan_svg(GRAPH, deployment, places, WORKLOAD, change)


@pytest.mark.parametrize(
    ("stages", "tensor", "replicas"),
    [(1, 1, 1), (2, 2, 1), (3, 8, 1), (4, 1, 2), (7, 1, 1), (17, 1, 1), (32, 2, 1), (64, 1, 1)],
)
@pytest.mark.parametrize("free", [1 << 30, UNKNOWN_MEMORY])
def test_no_text_of_the_picture_covers_another_or_leaves_it(
    stages: int, tensor: int, replicas: int, free: int
) -> None:
    topology = machine(8, tuple(f"compute-node-{i}" for i in range(8)), free)
    picture = drawn(planned(topology, stages, tensor, replicas), topology)
    check_readable(picture)


def test_the_picture_names_stages_devices_granules_and_bytes() -> None:
    topology = machine(4)
    picture = drawn(planned(topology, 2, tensor=2), topology)
    texts = texts_of(picture)
    assert "toy <0.1B> in 2 stages" in texts
    for expected in ("stage 1", "stage 2", "gpu:0-1", "gpu:2-3"):
        assert expected in texts
    assert any(re.match(r"embed, 0-\d+$", text) for text in texts)
    assert any(re.match(r"\d+-63, head$", text) for text in texts)
    assert any(re.match(r"[\d.]+ MiB of 1 GiB$", text) for text in texts)


SHAPES = st.sampled_from(
    [(1, 1, 1), (2, 1, 1), (3, 2, 1), (4, 1, 2), (1, 8, 2), (9, 1, 1), (2, 4, 3), (1, 1, 16)]
)


@given(SHAPES, SHAPES, st.text(min_size=1, max_size=30), st.sampled_from([0, 1000, 1 << 40]))
@settings(deadline=None, max_examples=30)
def test_any_plan_and_any_way_to_it_can_be_read(
    shape: tuple[int, int, int], before: tuple[int, int, int], host: str, free: int
) -> None:
    topology = machine(8, tuple(f"{host}-{i}" for i in range(3)), 1 << 30)
    plans = [planned(topology, *each) for each in (shape, before)]
    states = [replace(state, free_bytes=free) for state in topology.devices]
    check_readable(drawn(plans[0], replace(topology, devices=tuple(states)), plans[1]))


def test_the_way_from_another_plan_says_what_moves_where_and_how_much() -> None:
    topology = machine(4)
    one, two = planned(topology, 1), planned(topology, 2)
    picture = drawn(two, topology, one)
    moved = difference(one, two, GRAPH, 8)
    first = two.replicas[0].stages[1].granules.start
    for expected in ("From one to the other", "before", "after", f"granules {first}-63, head"):
        assert expected in texts_of(picture)
    assert f"{len(moved.moves)} pieces of the model move" in picture
    assert texts_of(picture).count(format_bytes(moved.total_bytes)) == 2
    (band,) = titled(picture, f"granules {first}-63, head: gpu:0 to gpu:1")
    (held,) = (box for box in titled(picture, "gpu:1") if box.attrib["x"] == band_left(band))
    assert float(held.attrib["width"]) == pytest.approx(float(band.attrib["width"]) + 1, abs=0.1)


def band_left(band: ElementTree.Element) -> str:
    """Where the box of the devices below a band begins."""
    return f"{float(band.attrib['x']) - 0.5:.2f}"


def test_devices_that_a_change_gives_up_are_named() -> None:
    topology = machine(4)
    picture = drawn(planned(topology, 1), topology, planned(topology, 4))
    assert "given up: gpu:1-3" in texts_of(picture)


def test_a_way_that_moves_nothing_says_so() -> None:
    topology = machine(4)
    plan = planned(topology, 2)
    text = "Nothing moves: every piece is where it has to be."
    assert text in texts_of(drawn(plan, topology, plan))


def test_microbatches_look_the_same_in_every_round() -> None:
    topology = machine(4)
    picture = drawn(planned(topology, 4), topology)
    for microbatch in range(1, 5):
        boxes = [
            box
            for number in range(1, 4)
            for box in titled(picture, f"stage 2, round {number}, microbatch {microbatch}")
            if not titled_as(box).endswith("receiving")
        ]
        assert len(boxes) == 3
        assert len({box.attrib["fill"] for box in boxes}) == 1


def titled_as(box: ElementTree.Element) -> str:
    return box.findtext(f"{SVG}title") or ""


def test_a_png_is_rendered_or_refused_with_the_mend() -> None:
    topology = machine(2)
    picture = drawn(planned(topology, 2), topology)
    if util.find_spec("resvg_py") is None:
        with pytest.raises(MeshError, match="pip install resvg-py, or write SVG"):
            svg_to_png(picture)
    else:
        png = svg_to_png(picture, zoom=1.5)
        assert png.startswith(b"\x89PNG\r\n")
        assert int.from_bytes(png[16:20]) == 1350


def test_the_table_has_a_line_for_each_stage_of_each_replica() -> None:
    topology = machine(4)
    deployment = planned(topology, 2, replicas=2)
    places = [places_of(plan, topology) for plan in deployment.replicas]
    lines = plan_table(GRAPH, deployment, places, WORKLOAD).splitlines()
    assert lines[0] == "replica 1 of 2: toy <0.1B>, 2 stages"
    assert lines[1].split() == [
        *("stage", "devices", "granules", "layers", "parameters", "KV", "pages"),
        *("activations", "free", "compute", "input"),
    ]
    assert lines[2].startswith("1      gpu:0    embed, 0-")
    assert lines[3].startswith("2      gpu:1    ")
    assert "-63, head" in lines[3]
    assert lines[4].startswith("slowest stage ")
    assert lines[8].startswith("1      gpu:2 ")


def test_the_table_of_a_difference_sums_up_its_moves() -> None:
    topology = machine(4)
    one, two = planned(topology, 1), planned(topology, 2)
    lines = difference_table(difference(one, two, GRAPH, 10)).splitlines()
    moved = len(two.replicas[0].stages[1].granules) + 1
    assert len(lines) == 1 + moved + 1
    assert lines[1].split()[:4] == ["granule", str(64 - moved + 1), "gpu:0", "gpu:1"]
    assert lines[-1].startswith(f"{moved} moves, ")
    assert difference_table(difference(one, one, GRAPH)) == "nothing moves"


def test_devices_are_written_short() -> None:
    devices = [Device("localhost", "gpu", i) for i in (0, 1, 2, 5)] + [Device("b", "cpu", 7)]
    assert short_devices(devices) == "gpu:0-2,5 b/cpu:7"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1536, "1.5 KiB"), (70 << 30, "70 GiB")],
)
def test_bytes_are_written_in_three_digits(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (1.25e-3, "1.25 ms"), (3e-9, "3 ns"), (75, "75 s")]
)
def test_seconds_are_written_in_three_digits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def stage(compute: float, transfer: float = 0.0) -> StageFigures:
    return StageFigures(compute, transfer, 0, 0, 0, 0)


def test_bubbles_vanish_with_as_many_microbatches_as_equal_stages() -> None:
    four = [stage(0.001)] * 4
    assert [round(idle_share(four, m), 6) for m in (1, 2, 4, 8)] == [0.75, 0.5, 0, 0]
    assert round_seconds(four, 1) == pytest.approx(0.004)
    assert round_seconds(four, 8) == pytest.approx(0.008)


def test_a_slow_stage_sets_the_pace() -> None:
    stages = [stage(0.001), stage(0.002, transfer=0.001)]
    assert round_seconds(stages, 4) == pytest.approx(4 * 0.003)
    assert idle_share(stages, 4) == pytest.approx(1 - (1 + 3) / (2 * 3))


@given(
    st.lists(
        st.builds(stage, st.sampled_from([0, 1e-9, 0.1]), st.sampled_from([0, 3.0])),
        min_size=1,
        max_size=70,
    ),
    st.integers(1, 70),
)
@settings(deadline=None, max_examples=20)
def test_a_timeline_of_any_times_can_be_read(stages: list[StageFigures], microbatches: int) -> None:
    canvas = Canvas(900, PAPER)
    check_readable(canvas.to_svg(draw_timeline(canvas, stages, microbatches, 20) + 10))


@given(
    st.lists(st.builds(stage, st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=5),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_a_stage_does_one_thing_at_a_time_and_after_the_stage_before(
    stages: list[StageFigures], microbatches: int, rounds: int
) -> None:
    slots = {(s.round, s.microbatch, s.stage): s for s in schedule(stages, microbatches, rounds)}
    assert len(slots) == len(stages) * microbatches * rounds
    for (number, microbatch, index), slot in slots.items():
        assert slot.received - slot.begin == stages[index].transfer_seconds
        assert slot.end - slot.received == stages[index].compute_seconds
        if index:
            assert slot.begin >= slots[number, microbatch, index - 1].end
        elif number:
            assert slot.begin >= slots[number - 1, microbatch, len(stages) - 1].end
    for index in range(len(stages)):
        own = sorted(
            (s for s in slots.values() if s.stage == index), key=lambda s: (s.begin, s.end)
        )
        assert all(a.end <= b.begin for a, b in itertools.pairwise(own))
