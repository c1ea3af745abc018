"""The picture of several systems."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fjx.plots.simulation import DEVICES, systems_svg
from fjx.sim.run import Result, simulate
from tests.unit.plots.picture_cases import SVG, check_readable, texts_of
from tests.unit.sim.sim_cases import cluster, setup, surges, systems


@pytest.fixture(scope="module")
def results() -> Sequence[Result]:
    both = (systems()[kind] for kind in ("static", "elastic"))
    return [simulate(system, setup(), cluster(), surges(80)) for system in both]


def test_it_names_every_system_with_what_it_held(results: Sequence[Result]) -> None:
    picture = systems_svg("title & more", "note " * 100, results)
    check_readable(picture)
    texts = texts_of(picture)
    for result in results:
        assert result.name in texts
        figures = f"latency {result.metrics.latency_mean:.2f} s, 99th percentile"
        assert any(text.startswith(figures) for text in texts)


@pytest.mark.parametrize("count", [1, 20])
def test_one_system_and_twenty_with_long_names_can_be_read(
    results: Sequence[Result], count: int
) -> None:
    several = [replace(results[1], name=f"system {i} of a long name " * 3) for i in range(count)]
    check_readable(systems_svg("title", "", several))


def test_a_run_in_which_no_request_ended_can_be_drawn(results: Sequence[Result]) -> None:
    outcomes = results[0].outcomes
    never = replace(outcomes, end=np.full_like(outcomes.end, np.nan))
    check_readable(systems_svg("title", "", [replace(results[0], outcomes=never)]))


def test_devices_are_held_from_one_moment_to_the_next_and_not_gradually() -> None:
    elastic = simulate(systems()["elastic"], setup(), cluster(), surges())
    held = {sample.devices for sample in elastic.samples}
    assert len(held) > 1
    root = ElementTree.fromstring(systems_svg("title", "note", [elastic]))
    devices = next(line for line in root.iter(f"{SVG}polyline") if line.get("stroke") == DEVICES)
    points = [point.split(",") for point in str(devices.get("points")).split()]
    for (x, y), (to_x, to_y) in pairwise(points):
        assert x == to_x or y == to_y
    assert len({y for _, y in points}) == len(held)


def test_without_runs_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        systems_svg("title", "note", [])
