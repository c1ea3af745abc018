"""The picture of one request's rounds."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.plots.rounds import BEHIND, OWN, PRUNED, RIGHT_TOKEN, WRONG, rounds_svg
from fjx.speculation.policy.round_timeline import DraftEvent, RoundTimeline, StepEvent
from tests.unit.plots.picture_cases import SVG, check_readable, titled


def rounds() -> RoundTimeline:
    """Two right, one wrong, one behind it; a void frontier; one of plain decoding; one pruned."""
    return RoundTimeline(
        [DraftEvent(0.0, 0.1, 4, 4), DraftEvent(1.15, 1.2, 2, 2)],
        [
            StepEvent(0.1, [1, 2, 3, 4], read=1.0, committed=[1, 2, 9]),
            StepEvent(0.5, [5], read=1.1, committed=[]),
            StepEvent(1.2, [6, 7], pruned=1, read=2.0, committed=[6, 7, 8]),
            StepEvent(2.0, [], read=2.9, committed=[10]),
            StepEvent(2.9, [11]),
        ],
    )


def shown(picture: str) -> list[tuple[str, str]]:
    """Tokens and the colours of the marks before them, as they come in the document."""
    found, color = [], ""
    for each in ElementTree.fromstring(picture):
        if each.attrib.get("height") == "8.00" and "data-legend" not in each.attrib:
            color = each.attrib["stroke"]
        elif each.tag == f"{SVG}text" and color:
            found.append((each.text or "", color))
            color = ""
    return found


def test_what_became_of_each_token_shows() -> None:
    picture = rounds_svg(rounds(), lambda token: f"t{token}", "A request")
    check_readable(picture)
    assert shown(picture) == [
        *(("t1", RIGHT_TOKEN), ("t2", RIGHT_TOKEN), ("t3", WRONG), ("t4", BEHIND), ("t9", OWN)),
        ("t5", BEHIND),
        *(("t6", RIGHT_TOKEN), ("t7", RIGHT_TOKEN), ("t8", OWN), ("pruned", PRUNED)),
        ("t10", OWN),
    ]
    assert "7 tokens in 4 steps; 7 drafted tokens verified, 4 of them right; 1 pruned" in picture


def test_steps_that_are_under_way_at_once_have_lanes_of_their_own() -> None:
    picture = rounds_svg(rounds(), str, "A request")
    places = [float(box.attrib["y"]) for box in titled(picture, "a step")]
    assert len(set(places[:2])) == 2
    assert places[0] == places[2]


def test_a_long_request_is_drawn_in_lines_and_cut_off() -> None:
    many = RoundTimeline(
        [], [StepEvent(float(i), [i], read=i + 0.9, committed=[i, 0]) for i in range(200)]
    )
    picture = rounds_svg(many, str, "A request")
    drawn = sum(colour == RIGHT_TOKEN for _, colour in shown(picture))
    left = re.search(r"(\d+) more steps are not drawn", picture)
    assert left is not None
    assert 50 < drawn == 200 - int(left[1])
    check_readable(picture)


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no step of the request was read"):
        rounds_svg(RoundTimeline([], [StepEvent(0.0, [1])]), str, "A request")


@given(
    st.lists(
        st.tuples(
            st.floats(0, 2),
            st.floats(0, 3),
            st.lists(st.integers(0, 5), max_size=8),
            st.lists(st.integers(0, 5), max_size=8),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(["x", " \n\t", "\x00\x1b", "<&>", "W" * 300, "\u6f22\u5b57", ""]),
)
@settings(deadline=None)
def test_any_request_can_be_read(
    raw: list[tuple[float, float, list[int], list[int], int]], text: str
) -> None:
    steps, at = [], 0.0
    for wait, took, drafted, committed, pruned in raw:
        at += wait
        steps.append(StepEvent(at, drafted, pruned=pruned, read=at + took, committed=committed))
    draftings = [DraftEvent(step.sent, step.sent + 0.1, 2, 1) for step in steps]
    check_readable(rounds_svg(RoundTimeline(draftings, steps), lambda _: text, text * 3))
