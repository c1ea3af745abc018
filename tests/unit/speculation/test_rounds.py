"""The picture of one request's rounds."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from fjx.sharding.palette import PARAMETERS, TIME
from fjx.sharding.svg import text_width
from fjx.speculation.draw_rounds import rounds_svg
from fjx.speculation.rounds import Drafting, Rounds, Step

SVG = "{http://www.w3.org/2000/svg}"
WRONG = "#c2504f"


def rounds() -> Rounds:
    """Two right, one wrong, one behind it; a void frontier; one of plain decoding; one pruned."""
    return Rounds(
        [Drafting(0.0, 0.1, 4, 4), Drafting(1.15, 1.2, 2, 2)],
        [
            Step(0.1, [1, 2, 3, 4], read=1.0, committed=[1, 2, 9]),
            Step(0.5, [5], read=1.1, committed=[]),
            Step(1.2, [6, 7], pruned=1, read=2.0, committed=[6, 7, 8]),
            Step(2.0, [], read=2.9, committed=[10]),
            Step(2.9, [11]),
        ],
    )


def shown(picture: str) -> list[tuple[str, str]]:
    """Tokens and the colours of the marks before them, as they come in the document."""
    root = list(ElementTree.fromstring(picture))
    pairs = itertools.pairwise(root)
    return [
        (text.text or "", mark.attrib["fill"])
        for mark, text in pairs
        if mark.tag == f"{SVG}rect" and mark.attrib["width"] == "5.00" and text.tag == f"{SVG}text"
    ]


def test_what_became_of_each_token_shows() -> None:
    picture = rounds_svg(rounds(), lambda token: f"t{token}", "A request")
    tokens = shown(picture)
    colours = dict(tokens)
    assert [token for token, _ in tokens] == [
        *("t1", "t2", "t3", "t4", "t9"),
        "t5",
        *("t6", "t7", "t8", "pruned"),
        "t10",
    ]
    assert [token for token, colour in tokens if colour == TIME] == ["t1", "t2", "t6", "t7"]
    assert [token for token, colour in tokens if colour == PARAMETERS] == ["t9", "t8", "t10"]
    assert [token for token, colour in tokens if colour == WRONG] == ["t3"]
    assert colours["t4"] == colours["t5"] == colours["pruned"]
    assert "7 tokens in 4 steps; 7 drafted tokens were verified, 4 of them were right" in picture


def test_steps_that_are_under_way_at_once_have_lanes_of_their_own() -> None:
    picture = rounds_svg(rounds(), str, "A request")
    places = [
        float(box.attrib["y"])
        for box in ElementTree.fromstring(picture).iter(f"{SVG}rect")
        if (title := box.find(f"{SVG}title")) is not None
        and (title.text or "").startswith("a step")
    ]
    assert len(set(places[:2])) == 2
    assert places[0] == places[2]


def test_a_long_request_is_drawn_in_lines_and_cut_off() -> None:
    many = Rounds([], [Step(float(i), [i], read=i + 0.9, committed=[i, 0]) for i in range(200)])
    picture = rounds_svg(many, str, "A request")
    drawn = sum(colour == TIME for _, colour in shown(picture))
    left = re.search(r"(\d+) more steps are not drawn", picture)
    assert left is not None
    assert 50 < drawn == 200 - int(left[1])
    for text in ElementTree.fromstring(picture).iter(f"{SVG}text"):
        if text.attrib["text-anchor"] == "start":
            width = text_width(text.text or "", float(text.attrib["font-size"]))
            assert float(text.attrib["x"]) + width <= 1200


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no step of the request was read"):
        rounds_svg(Rounds([], [Step(0.0, [1])]), str, "A request")
