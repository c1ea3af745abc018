"""The picture of a run shows what happened, and is readable."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from benchmarks.draw_run import RunRecord, run_svg
from fjx.errors import MeshError
from fjx.plots.palette import CATEGORIES, INK, ink_on
from tests.unit.plots.picture_cases import check_readable, texts_of, titled

GRANULES = 10


def plan(*devices: int) -> dict[str, Any]:
    """A plan of one stage for each device."""
    cuts = [GRANULES * i // len(devices) for i in range(len(devices) + 1)]
    stages = [
        {"granules": [begin, end], "devices": [f"localhost/cpu:{device}"]}
        for (begin, end), device in zip(itertools.pairwise(cuts), devices, strict=True)
    ]
    return {"stages": stages}


def record(changes: int = 3, *, aborted: int | None = None, seconds: float = 60.0) -> RunRecord:
    """A run through 1, 2, 4, 8 stages; change number ``aborted`` leaves the plan as it was."""
    ladder = (1, 2, 4, 8)
    plans, switches, serving, begin = [], [], 1, 0.0
    for number in range(changes):
        to = ladder[(number + 1) % 4]
        start = seconds * (number + 0.5) / changes
        phases = [("compiling", 0.02), ("copying", 0.1 * seconds / changes), ("switching", 0.001)]
        done = number != aborted
        state = "done" if done else "aborted"
        switches.append(
            {"label": f"{serving}->{to}", "begin": start, "state": state, "phases": phases}
        )
        if done:
            end = start + sum(took for _, took in phases)
            plans.append({"begin": begin, "end": end, "plan": plan(*range(serving))})
            serving, begin = to, end
    plans.append({"begin": begin, "end": seconds, "plan": plan(*range(serving))})
    values = {
        "title": "toy <0.1B>: 200 requests",
        "note": "pause of a change: median 0.2 ms",
        "seconds": seconds,
        "plans": plans,
        "switches": switches,
        "first_tokens": [(seconds * i / 50, 0.05 + 0.1 * (i % 7)) for i in range(50)],
        "gaps": [
            (seconds * i / 100, seconds * (i + 1) / 100, 0.02, 0.04, 0.11) for i in range(100)
        ],
        "load": [(seconds * i / 200, i % 17, i % 5) for i in range(200)],
    }
    read_back: RunRecord = json.loads(json.dumps(values))
    return read_back


@pytest.mark.parametrize(
    ("changes", "seconds", "aborted"),
    [
        (0, 1.0, None),
        (1, 0.4, None),
        (3, 60.0, 1),
        (22, 150.0, None),
        (40, 7200.0, 5),
        (9, 1e-6, 2),
    ],
)
def test_no_text_of_the_picture_covers_another_or_leaves_it(
    changes: int, seconds: float, aborted: int | None
) -> None:
    picture = run_svg(record(changes, seconds=seconds, aborted=aborted))
    check_readable(picture)


def test_the_picture_names_changes_devices_granules_and_what_colours_mean() -> None:
    shown = texts_of(run_svg(record(3)))
    for expected in (
        "toy <0.1B>: 200 requests",
        "1\u21922",
        "2\u21924",
        "4\u21928",
        "cpu:0",
        "cpu:7",
        "0-9",
    ):
        assert expected in shown
    for meaning in ("time to first token", "compiling", "copying", "switch"):
        assert meaning in shown
    assert "holds stage 1 to 8, with these granules" in shown
    assert "aborted change" not in shown


def test_a_lane_shows_how_long_a_device_held_a_stage() -> None:
    run = record(1, seconds=60.0)
    picture = run_svg(run)
    (whole,) = titled(picture, "stage 1 of 1, granules 0-9")
    (half,) = titled(picture, "stage 2 of 2, granules 5-9")
    served = run["plans"][0]["end"] / 60.0
    assert float(whole.attrib["width"]) / (
        float(whole.attrib["width"]) + float(half.attrib["width"])
    ) == pytest.approx(served, abs=0.001)
    assert float(half.attrib["y"]) > float(whole.attrib["y"])
    assert float(half.attrib["x"]) > float(whole.attrib["x"])


def test_an_aborted_change_is_marked_and_the_old_plan_serves_on() -> None:
    picture = run_svg(record(3, aborted=1))
    assert "aborted change" in texts_of(picture)
    assert not titled(picture, "stage 3 of 4")
    band = titled(picture, "2->4: copying")[0]
    done = titled(picture, "1->2: copying")[0]
    assert band.attrib["fill"] != done.attrib["fill"]


def test_replicas_and_given_devices_have_lanes_of_their_own() -> None:
    run = record(0)
    run["devices"] = [f"localhost/cpu:{i}" for i in range(4)]
    deployment = {"replicas": [plan(0), plan(2)]}
    run["plans"] = [{"begin": 0.0, "end": 60.0, "plan": deployment}]
    picture = run_svg(run)
    assert {f"cpu:{i}" for i in range(4)} <= set(texts_of(picture))
    first, second = titled(picture, "stage 1 of 1")
    assert first.attrib["y"] != second.attrib["y"]
    assert first.attrib["fill"] == second.attrib["fill"]


def test_a_thousand_devices_and_long_names_can_be_read() -> None:
    run = record(2)
    run["title"] = "a long title " * 20
    run["note"] = "a long note " * 60
    run["devices"] = [f"compute-node-of-the-cluster-{i}/gpu:{i}" for i in range(1000)]
    picture = run_svg(run)
    check_readable(picture)
    assert "and 936 more devices" in texts_of(picture)


def test_a_run_without_requests_can_be_drawn() -> None:
    run = record(2)
    run["first_tokens"], run["gaps"], run["load"] = [], [], []
    picture = run_svg(run)
    check_readable(picture)
    assert "1\u21922" in texts_of(picture)


def test_a_longer_wait_is_higher_up() -> None:
    run = record(0)
    run["first_tokens"] = [(10.0, 0.1), (20.0, 5.0)]
    picture = run_svg(run)
    (short,), (long,) = (titled(picture, f"first token after {s}") for s in ("100 ms", "5 s"))
    assert float(long.attrib["y"]) < float(short.attrib["y"])


@pytest.mark.parametrize("color", [*CATEGORIES, "#000000", "#ffffff"])
def test_text_on_a_colour_stands_out(color: str) -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    ink = ink_on(color)
    assert re.fullmatch("#[0-9a-f]{6}", ink)
    assert ink in ("#ffffff", INK)
    low, high = sorted((luminance(color), luminance(ink)))
    assert (high + 0.05) / (low + 0.05) >= 4


def test_a_run_of_no_length_is_refused() -> None:
    with pytest.raises(MeshError, match="more than 0 seconds"):
        run_svg(record(0) | {"seconds": 0.0})  # type: ignore[typeddict-item]


def test_a_plan_that_cannot_be_read_is_refused_with_the_place() -> None:
    run = record(0)
    run["plans"] = [
        {"begin": 0.0, "end": 1.0, "plan": {"stages": [{"granules": [0], "devices": []}]}}
    ]
    with pytest.raises(MeshError, match="granules"):
        run_svg(run)
