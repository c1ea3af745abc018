"""What benchmarks/soak.py says of a process's memory, and what it asks."""

from __future__ import annotations

import importlib
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.unit.plots.picture_cases import check_readable
from tests.unit.resident import on_linux

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
MIB = 1 << 20


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("resident")


def samples(resident: Any, *sizes: int) -> list[Any]:
    return [
        resident.Sample(float(i), size * MIB, size * MIB // 2, i) for i, size in enumerate(sizes)
    ]


def test_growth_is_from_the_second_quarter_to_the_last(resident: Any) -> None:
    found = resident.summary(samples(resident, 10, 20, 100, 104, 140, 150, 128, 132))
    assert found["growth_mib"] == 28
    assert found["second_quarter_mib"] == {"min": 100, "median": 102, "max": 104}
    assert (found["first_mib"], found["last_mib"], found["most_mib"]) == (10, 132, 150)
    assert found["changes"] == 7


@on_linux
def test_a_process_is_watched_while_work_goes_on(resident: Any) -> None:
    done = 0
    with resident.recorded(os.getpid(), lambda: done, every=60.0) as record:
        done = 3
    first, *_, last = record.samples
    assert (first.count, last.count) in {(0, 3), (3, 3)}
    assert first.resident > first.anonymous > MIB
    assert resident.memory_of(os.getpid()).peak > last.resident // 2  # counted in batches


def test_the_picture_shows_each_part(resident: Any) -> None:
    parts = [
        ("idle", samples(resident, 900, 950)),
        ("under load", samples(resident, 1000, 990, 980)),
    ]
    drawn = resident.picture("Memory", parts)
    texts = [each.text for each in ElementTree.fromstring(drawn).iter() if each.text]
    assert "idle: 1 changes of plan" in texts
    assert "under load: 2 changes of plan" in texts
    check_readable(drawn)
    lines = [each for each in ElementTree.fromstring(drawn).iter() if "polyline" in each.tag]
    assert len(lines) == 4


def test_requests_are_of_all_kinds_and_the_same_for_a_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    load = importlib.import_module("soak_load")
    asked = load.mixed_requests(16, longest=500, seed=3)
    assert asked == load.mixed_requests(16, longest=500, seed=3)
    assert sum(len(each.body["prompt"].split()) > 500 for each in asked) == 2
    assert {each.body["temperature"] > 0 for each in asked} == {True, False}
