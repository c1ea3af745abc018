"""What the check of pictures finds, each on a canvas with one fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fjx.plots.chart import Panel, entry, legend
from fjx.plots.palette import BLUE, INK, ORANGE, PAPER
from fjx.plots.svg import Canvas
from fjx.plots.ticks import Scale
from tests.unit.plots.picture_cases import check_readable


def picture(draw: Callable[[Canvas], object]) -> str:
    canvas = Canvas(900, PAPER)
    legend(canvas, [entry("what is blue", BLUE)], 20)
    draw(canvas)
    return canvas.to_svg(200)


def axis(ticks: tuple[float, ...]) -> Callable[[Canvas], object]:
    panel = Panel(100, 50, 800, 150, Scale(0, ticks[-1], ticks), Scale(0, 1, ()))
    return panel.draw_columns


def two_words(canvas: Canvas) -> None:
    canvas.text(100, 100, "one word", 12, INK)
    canvas.text(130, 104, "another", 12, INK)


FAULTS: dict[str, Callable[[Canvas], object]] = {
    "a text covers another": two_words,
    "a text leaves at the right": lambda c: c.text(880, 100, "too long", 12, INK),
    "a text leaves below": lambda c: c.text(100, 199, "too low", 12, INK),
    "a text is tiny": lambda c: c.text(100, 100, "tiny", 8, INK),
    "a box leaves": lambda c: c.rect(850, 100, 60, 10, BLUE),
    "a line leaves": lambda c: c.path([(10, 10), (10, 260)], BLUE),
    "a colour is in no legend": lambda c: c.rect(100, 100, 60, 10, ORANGE),
    "a colour means two things": lambda c: legend(c, [entry("else", BLUE)], 100),
    "ticks are no round numbers": axis((0, 13.2, 26.5, 39.7)),
    "ticks are 3 apart": axis((0, 3, 6, 9)),
    "ticks do not begin at a multiple": axis((5, 15, 25)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str) -> None:
    with pytest.raises(AssertionError):
        check_readable(picture(FAULTS[fault]))


def test_a_picture_without_faults_passes() -> None:
    check_readable(picture(axis((0, 20, 40))))
    check_readable(picture(axis((0.1, 1, 10, 100))))


def test_signs_that_xml_forbids_are_replaced() -> None:
    check_readable(picture(lambda c: c.text(100, 100, "a\x00b\x1b<&>\ud800", 12, INK)))
