"""The picture of several systems."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from fjx.sharding.palette import PARAMETERS
from fjx.sim.draw import systems_svg
from fjx.sim.run import simulate
from tests.unit.sim.sim_cases import cluster, setup, surges, systems

SVG = "{http://www.w3.org/2000/svg}"


def test_it_names_every_system_with_what_it_held() -> None:
    both = (systems()[kind] for kind in ("static", "elastic"))
    results = [simulate(system, setup(), cluster(), surges(80)) for system in both]
    text = systems_svg("title & more", "note", results)
    ElementTree.fromstring(text)
    for result in results:
        assert f"{result.name}: latency {result.metrics.latency_mean:.2f} s" in text


def test_devices_are_held_from_one_moment_to_the_next_and_not_gradually() -> None:
    elastic = simulate(systems()["elastic"], setup(), cluster(), surges())
    held = {sample.devices for sample in elastic.samples}
    assert len(held) > 1
    root = ElementTree.fromstring(systems_svg("title", "note", [elastic]))
    devices = next(line for line in root.iter(f"{SVG}polyline") if line.get("stroke") == PARAMETERS)
    points = [point.split(",") for point in str(devices.get("points")).split()]
    for (x, y), (to_x, to_y) in pairwise(points):
        assert x == to_x or y == to_y
    assert len({y for _, y in points}) == len(held)


def test_without_runs_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        systems_svg("title", "note", [])
