"""Runs of several systems as a picture: devices held, requests, and latency over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fjx.plots.chart import MARGIN, RIGHT, WIDTH, Entry, Panel, entry, heading, legend
from fjx.plots.palette import BLUE, FAINT, GREEN, INK, ORANGE, PAPER, PURPLE, SKY, VERMILION
from fjx.plots.svg import Canvas
from fjx.plots.ticks import Scale, scale_to

if TYPE_CHECKING:
    from fjx.sim.run import Result

_COLUMNS, _GUTTER, _SPACE = 3, 40.0, 14.0
_HEIGHT, _ARRIVALS = 84.0, 56.0
_BUCKETS = 150
DEVICES, RUNNING, WAITING, MEDIAN, HIGH, ARRIVALS = BLUE, SKY, VERMILION, GREEN, ORANGE, PURPLE

Line = Sequence[tuple[float, float]]
"""Seconds from the start, and a value."""
Curves = Sequence[tuple[str, Line]]
"""Colours and lines."""


@dataclass(frozen=True)
class _Column:
    """What is shown of each system."""

    title: str
    entries: tuple[Entry, ...]
    whole: bool
    """Whether it is counted in whole numbers."""


_SHOWN = (
    _Column("Devices", (entry("held", DEVICES, "line"),), True),
    _Column(
        "Requests", (entry("running", RUNNING, "line"), entry("waiting", WAITING, "line")), True
    ),
    _Column(
        "Latency, s",
        (entry("median", MEDIAN, "line"), entry("95th percentile", HIGH, "line")),
        False,
    ),
)


def systems_svg(title: str, note: str, results: Sequence[Result]) -> str:
    """Draw runs of one workload, 900 pixels wide: how many requests came, then a row for each
    system with the devices that it held, its requests, and their latency by arrival. What stands
    in one column has one scale.

    Args:
        title: The heading.
        note: A line under it.
        results: The runs.

    Raises:
        ValueError: there are none.
    """
    if not results:
        raise ValueError("a picture needs at least one run, got none")
    canvas = Canvas(WIDTH, PAPER)
    seconds = max((result.samples[-1].at for result in results if result.samples), default=1.0)
    across = scale_to(seconds, most=4, exact=True)
    y = heading(canvas, title, [note] if note else [])
    y = _draw_arrivals(canvas, y, _arrivals(results[0], seconds), across)
    curves = [_curves(result, seconds) for result in results]
    scales = [
        scale_to(_most(of_column), most=4, whole=column.whole)
        for column, of_column in zip(_SHOWN, zip(*curves, strict=True), strict=True)
    ]
    for column, each in zip(_columns(), _SHOWN, strict=True):
        canvas.text(column[0], y + 14, each.title, 13, INK, bold=True)
        legend(canvas, each.entries, y + 34, x=column[0], right=column[1])
    y += 48
    for number, (result, of_system) in enumerate(zip(results, curves, strict=True)):
        last = number == len(results) - 1
        y = _draw_system(canvas, y, result, of_system, scales, across, last) + 10
    return canvas.to_svg(y + 8)


def _columns() -> list[tuple[float, float]]:
    """Left and right of each column's panels."""
    width = (RIGHT - MARGIN - _SPACE * (_COLUMNS - 1)) / _COLUMNS
    lefts = [MARGIN + number * (width + _SPACE) for number in range(_COLUMNS)]
    return [(left + _GUTTER, left + width) for left in lefts]


def _draw_arrivals(canvas: Canvas, y: float, line: Line, across: Scale) -> float:
    """The same in each column, over what came of it."""
    entries = [entry("arrivals, requests a second, the same in each column", ARRIVALS, "line")]
    y = legend(canvas, entries, y + 4, x=_columns()[0][0]) + 6
    scale = scale_to(_most([[(ARRIVALS, line)]]), most=3)
    for left, right in _columns():
        panel = Panel(left, y, right, y + _ARRIVALS, across, scale)
        panel.draw_rows(canvas)
        _draw_curves(canvas, panel, [(ARRIVALS, line)])
    return y + _ARRIVALS + 14


def _draw_system(
    canvas: Canvas,
    y: float,
    result: Result,
    curves: Sequence[Curves],
    scales: Sequence[Scale],
    across: Scale,
    last: bool,
) -> float:
    """A row of panels under the system's name and figures; where it ends."""
    m = result.metrics
    figures = (
        f"latency {m.latency_mean:.2f} s, 99th percentile {m.latency_p99:.2f} s; "
        f"{m.devices_mean:.1f} devices held; {m.attainment:.1%} served well"
    )
    (left, right), (second, _), _ = _columns()
    canvas.text(left, y + 12, result.name, 12, INK, bold=True, room=right - left)
    canvas.text(second, y + 12, figures, 12, FAINT, room=RIGHT - second)
    top, end = y + 28, y
    for column, (from_x, to_x) in enumerate(_columns()):
        panel = Panel(from_x, top, to_x, top + _HEIGHT, across, scales[column])
        panel.draw_rows(canvas)
        _draw_curves(canvas, panel, curves[column])
        if last:
            end = panel.draw_columns(canvas, "time, s")
    return max(end, top + _HEIGHT)


def _draw_curves(canvas: Canvas, panel: Panel, curves: Curves) -> None:
    for color, line in curves:
        points = [panel.at(*each) for each in line if math.isfinite(each[1])]
        if points:
            canvas.path(_corners(points), color, 1.6)


def _most(curves: Sequence[Curves]) -> float:
    """The greatest value of all lines."""
    values = [value for lines in curves for _, line in lines for _, value in line]
    return max((value for value in values if math.isfinite(value)), default=1.0)


def _curves(result: Result, seconds: float) -> list[Curves]:
    samples = result.samples
    devices = _stepped([(each.at, each.devices) for each in samples])
    running = [(each.at, float(each.running)) for each in samples]
    waiting = [(each.at, float(each.waiting)) for each in samples]
    median, high = _latencies(result, seconds)
    return [
        [(DEVICES, devices)],
        [(RUNNING, running), (WAITING, waiting)],
        [(HIGH, high), (MEDIAN, median)],
    ]


def _stepped(line: Line) -> Line:
    """Level from each point to the next: devices are taken and given back at once."""
    corners = [((to_at, value), (to_at, to)) for (_, value), (to_at, to) in pairwise(line)]
    return [*line[:1], *(point for pair in corners for point in pair)]


def _arrivals(result: Result, seconds: float) -> Line:
    """Requests a second."""
    counts, edges = np.histogram(result.outcomes.arrival, _BUCKETS, (0.0, seconds))
    width = seconds / _BUCKETS
    return _stepped([(float(at), count / width) for at, count in zip(edges, counts, strict=False)])


def _latencies(result: Result, seconds: float) -> tuple[Line, Line]:
    """Median and 95th percentile, by when requests came."""
    outcomes, width = result.outcomes, seconds / _BUCKETS
    latency = outcomes.end - outcomes.arrival
    bucket = (outcomes.arrival / width).astype(int)
    median, high = [], []
    for number in np.unique(bucket[~np.isnan(latency)]).tolist():
        inside = latency[(bucket == number) & ~np.isnan(latency)]
        at = (number + 0.5) * width
        median.append((at, float(np.median(inside))))
        high.append((at, float(np.percentile(inside, 95))))
    return median, high


def _corners(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points without those within a level stretch."""
    inner = zip(points, points[1:], points[2:], strict=False)
    kept = [point for before, point, after in inner if not before[1] == point[1] == after[1]]
    return [*points[:1], *kept, *points[-1:]]
