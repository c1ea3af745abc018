"""The picture of several systems."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from fjx.sim.draw import systems_svg
from fjx.sim.run import simulate
from tests.unit.sim.sim_cases import cluster, setup, surges, systems


def test_it_names_every_system_with_what_it_held() -> None:
    both = (systems()[kind] for kind in ("static", "elastic"))
    results = [simulate(system, setup(), cluster(), surges(80)) for system in both]
    text = systems_svg("title & more", "note", results)
    ElementTree.fromstring(text)
    for result in results:
        assert f"{result.name}: latency {result.metrics.latency_mean:.2f} s" in text


def test_without_runs_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        systems_svg("title", "note", [])
