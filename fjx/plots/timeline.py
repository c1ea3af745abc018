"""The timeline under a plan's picture: which stage works on which microbatch, and the bubbles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fjx.plots.chart import MARGIN, RIGHT, Entry, Panel, entry, legend
from fjx.plots.palette import COMPUTE, EDGE, FAINT, GRID, INK, RECEIVE, ink_on, shades
from fjx.plots.svg import Canvas
from fjx.plots.text_size import text_width
from fjx.plots.ticks import Scale, scale_to, time_unit
from fjx.sharding.costs.figures import StageFigures
from fjx.sharding.costs.timeline import Slot, schedule
from fjx.wording import counted

_ROUNDS = 3
_LABEL = 52.0
"""Room for the names of the stages."""
_MAX_STAGES = 64
_MANY = 1000
"""Boxes of a round from which one round is enough."""
_SIZE = 11.0
_NARROW, _NARROWEST = 3.0, 0.3
"""Boxes without a number of their own, and those that would not be seen."""


def draw_timeline(
    canvas: Canvas, stages: Sequence[StageFigures], microbatches: int, top: float
) -> float:
    """Draw the first rounds of the pipeline from the height ``top`` on; return where they end.

    Microbatches have their numbers and get lighter from the first to the last, in every round
    alike, so that a round begins where it gets dark again. What a stage spends idle is empty.
    """
    shown = min(len(stages), _MAX_STAGES)
    rounds = _ROUNDS if shown * microbatches <= _MANY else 1
    slots = schedule(stages, microbatches, rounds)
    unit, scale = time_unit(max(slot.end for slot in slots))
    whole = max(slot.end for slot in slots) * scale or 1.0
    pitch = 20.0 if shown <= 16 else 14.0
    colors = shades(COMPUTE, microbatches)
    title = f"When stages work: {counted(rounds, 'round')} from an empty pipeline"
    canvas.text(MARGIN, top + 8, title, 13, INK, bold=True)
    y = legend(canvas, _entries(colors), top + 30) + 24
    panel = Panel(
        *(MARGIN + _LABEL, y, RIGHT, y + shown * pitch),
        scale_to(whole, most=8, exact=True),
        Scale(0.0, 1.0, ()),
    )
    _draw_rounds(canvas, panel, [s.begin * scale for s in slots if not s.stage | s.microbatch])
    for index in range(shown):
        middle = y + index * pitch + pitch / 2 - 1
        canvas.text(panel.left - 6, middle, f"stage {index + 1}", 10, INK, anchor="end")
        bottom = y + (index + 1) * pitch - 1.5
        canvas.line(panel.left, bottom, panel.right, bottom, GRID)
        own = sorted((slot for slot in slots if slot.stage == index), key=lambda slot: slot.begin)
        for box in _boxes(panel, own, scale, colors):
            _draw_box(canvas, box, y + index * pitch, pitch - 3)
    bottom = panel.draw_columns(canvas)
    canvas.text(MARGIN, panel.bottom + 13, unit, _SIZE, FAINT)
    if shown < len(stages):
        more = f"and {len(stages) - shown} more stages"
        canvas.text(MARGIN, bottom + 8, more, _SIZE, FAINT)
        bottom += 18
    return bottom


@dataclass(frozen=True)
class _Box:
    """What a stage does from one place of the time axis to another."""

    x: float
    end: float
    color: str
    title: str
    label: str = ""


def _boxes(panel: Panel, slots: Sequence[Slot], scale: float, colors: Sequence[str]) -> list[_Box]:
    """The work of one stage; boxes too narrow to be told apart are one."""
    boxes: list[_Box] = []
    for slot in slots:
        x, at, end = (panel.across(t * scale) for t in (slot.begin, slot.received, slot.end))
        label = f"{slot.microbatch + 1}"
        title = f"stage {slot.stage + 1}, round {slot.round + 1}, microbatch {label}"
        new = [_Box(at, end, colors[slot.microbatch], title, label)]
        if at - x >= _NARROWEST:
            new.insert(0, _Box(x, at, RECEIVE, f"{title}: receiving"))
        for box in new:
            last = boxes[-1] if boxes else None
            if (
                last is not None
                and last.color == box.color
                and box.end - box.x < _NARROW
                and box.x - last.end < 1
            ):
                boxes[-1] = _Box(last.x, box.end, box.color, "several microbatches")
            else:
                boxes.append(box)
    return boxes


def _draw_box(canvas: Canvas, box: _Box, y: float, height: float) -> None:
    # The paper between two boxes is half a pixel, but a box never vanishes.
    gap = 0.5 if box.color != RECEIVE else 0.0
    width = max(box.end - box.x - gap, _NARROWEST)
    canvas.rect(box.x, y, width, height, box.color, title=box.title)
    if box.label and text_width(box.label, 10) + 3 < box.end - box.x:
        middle = (box.x + box.end) / 2
        ink = ink_on(box.color)
        canvas.text(middle, y + height / 2, box.label, 10, ink, anchor="middle")


def _entries(colors: Sequence[str]) -> list[Entry]:
    """The legend: what a stage may be doing."""
    label = "computing"
    if len(colors) > 1:
        label = "computing a microbatch, by its number"
    return [Entry(label, tuple(dict.fromkeys(colors))), entry("receiving the input", RECEIVE)]


def _draw_rounds(canvas: Canvas, panel: Panel, begins: Sequence[float]) -> None:
    """Mark where the first stage begins each round."""
    for number, begin in enumerate(begins, start=1):
        x = panel.across(begin)
        canvas.line(x, panel.top - 16, x, panel.top - 2, EDGE)
        following = panel.across(begins[number]) if number < len(begins) else panel.right
        canvas.text(x + 4, panel.top - 10, f"round {number}", 10, FAINT, room=following - x - 6)
