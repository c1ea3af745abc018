"""The pictures of the documents: each can be read at a glance, and is what the code draws now."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.draw_run import run_svg
from tests.unit.plots.picture_cases import check_readable, texts_of

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """A module of the benchmarks' folder, by name."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module(request.param)
    for name in set(sys.modules) - before:
        path = getattr(sys.modules[name], "__file__", None) or ""
        if path.startswith(str(ROOT / "benchmarks")):
            monkeypatch.delitem(sys.modules, name)
    return module


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_of_the_documents_can_be_read(path: Path) -> None:
    picture = path.read_text(encoding="utf-8")
    check_readable(picture)
    assert not any("\u2026" in text for text in texts_of(picture)), "a text is cut off"


def test_the_run_of_the_documents_is_drawn_from_its_record() -> None:
    record = json.loads((RESULTS / "regranularize_2026-11-25_run.json").read_text())
    assert run_svg(record) == (IMAGES / "regranularize.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("benchmark", ["placement_picture"], indirect=True)
def test_the_placements_of_the_documents_are_drawn_from_their_result(
    benchmark: ModuleType,
) -> None:
    result = json.loads((RESULTS / "placement_2026-11-28.json").read_text())
    assert benchmark.picture(result) == (IMAGES / "placement.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("benchmark", ["placement_time"], indirect=True)
def test_the_times_of_the_documents_are_drawn_from_their_result(benchmark: ModuleType) -> None:
    found = json.loads((RESULTS / "placement_time_2026-11-28.json").read_text())["milliseconds"]
    picture = benchmark.picture(found, list(benchmark.CASES), benchmark.TOLERANCES)
    assert picture == (IMAGES / "placement_time.svg").read_text(encoding="utf-8")
