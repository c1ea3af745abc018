"""Runs of several systems as a picture: devices held, the queue, and latency over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fjx.sharding.palette import FAINT, FREE, INK, KV, PAPER, PARAMETERS, TIME, WARNING
from fjx.sharding.svg import Canvas
from fjx.sim.run import Result

_WIDTH, _MARGIN, _LEFT = 1200.0, 24.0, 84.0
_HEIGHT, _GAP = 66.0, 20.0
_BUCKETS = 150

Line = Sequence[tuple[float, float]]
"""Seconds from the start, and a value."""


def systems_svg(title: str, note: str, results: Sequence[Result]) -> str:
    """Draw runs of one workload, 1200 pixels wide: how many requests came, then for each system a
    panel with the devices that it held, one with its requests, one with their latency by arrival,
    all on equal scales.

    Args:
        title: The heading.
        note: A line under it.
        results: The runs.

    Raises:
        ValueError: there are none.
    """
    if not results:
        raise ValueError("a picture needs at least one run, got none")
    canvas = Canvas(_WIDTH, PAPER)
    room = _WIDTH - 2 * _MARGIN
    canvas.text(_MARGIN, _MARGIN + 9, title, 18, INK, bold=True, room=room)
    canvas.text(_MARGIN, _MARGIN + 34, note, 12, FAINT, room=room)
    seconds = max(result.samples[-1].at for result in results)
    panels = [_panels(result, seconds) for result in results]
    most = [max(max((v for _, v in line), default=1.0) for lines in kind for _, line in lines)
            for kind in zip(*panels, strict=True)]  # fmt: skip
    y = _MARGIN + 56
    came = _arrivals(results[0], seconds)
    _panel(canvas, y, "arrivals/s", [(INK, came)], max(rate for _, rate in came), seconds)
    y += _HEIGHT + 2 * _GAP
    for result, of_system in zip(results, panels, strict=True):
        m = result.metrics
        text = (
            f"{result.name}: latency {m.latency_mean:.2f} s, 99th percentile {m.latency_p99:.2f} "
            f"s; {m.devices_mean:.1f} devices held; {m.attainment:.1%} served well"
        )
        canvas.text(_MARGIN, y, text, 13, INK, bold=True, room=room)
        y += 14
        for (label, lines), top in zip(
            zip(("devices", "requests", "latency, s"), of_system, strict=True), most, strict=True
        ):
            _panel(canvas, y, label, lines, max(top, 1.0), seconds)
            y += _HEIGHT + _GAP
        y += 8
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _LEFT + share * (_WIDTH - _MARGIN - _LEFT)
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        canvas.text(x, y, f"{share * seconds:.0f} s", 11, FAINT, anchor=anchor)
    y += 20
    legend = (("devices held", PARAMETERS), ("running", INK), ("waiting", WARNING),
              ("median latency", TIME), ("95th percentile", KV))  # fmt: skip
    for i, (name, color) in enumerate(legend):
        canvas.text(_LEFT + 140 * i, y, name, 11, color)
    return canvas.to_svg(y + _MARGIN)


def _panels(result: Result, seconds: float) -> list[list[tuple[str, Line]]]:
    samples = result.samples
    devices = _stepped([(each.at, each.devices) for each in samples])
    running = [(each.at, float(each.running)) for each in samples]
    waiting = [(each.at, float(each.waiting)) for each in samples]
    median, high = _latencies(result, seconds)
    return [
        [(PARAMETERS, devices)],
        [(WARNING, waiting), (INK, running)],
        [(KV, high), (TIME, median)],
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


def _panel(
    canvas: Canvas,
    top: float,
    label: str,
    lines: Sequence[tuple[str, Line]],
    most: float,
    seconds: float,
) -> None:
    right = _WIDTH - _MARGIN
    canvas.rect(_LEFT, top, right - _LEFT, _HEIGHT, "#ffffff", stroke=FREE)
    highest = f"{most:.0f}" if most > 10 else f"{most:.1f}"
    canvas.text(_LEFT - 6, top + 6, highest, 10, FAINT, anchor="end")
    canvas.text(_LEFT - 6, top + _HEIGHT / 2, label, 10, FAINT, anchor="end")
    canvas.text(_LEFT - 6, top + _HEIGHT - 4, "0", 10, FAINT, anchor="end")

    def place(at: float, value: float) -> tuple[float, float]:
        share = min(max(at / seconds, 0.0), 1.0)
        return _LEFT + (right - _LEFT) * share, top + _HEIGHT * (1 - value / most)

    for color, line in lines:
        points = _corners([place(*each) for each in line if math.isfinite(each[1])])
        canvas.path(points, color, 1.3)


def _corners(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points without those within a level stretch."""
    inner = zip(points, points[1:], points[2:], strict=False)
    kept = [point for before, point, after in inner if not before[1] == point[1] == after[1]]
    return [*points[:1], *kept, *points[-1:]]
