"""The result of benchmarks/placement_time.py as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fjx.plots.chart import DASHES, MARGIN, RIGHT, WIDTH, Panel, entry, heading, legend
from fjx.plots.palette import CATEGORIES, INK, PAPER
from fjx.plots.svg import Canvas
from fjx.plots.ticks import log_scale

_GAP, _GUTTER, _HEIGHT = 16.0, 54.0, 240.0


def title(tolerance: float, hop_tolerance: float) -> str:
    """Of the tolerances, in names of results."""
    return f"tolerance {tolerance:g}, of hops {hop_tolerance:g}"


def picture(
    found: Mapping[str, Mapping[str, Mapping[str, float]]],
    cases: Sequence[str],
    tolerances: Sequence[tuple[float, float]],
) -> str:
    """Time over devices, both by powers of ten, as SVG: a panel for each pair of tolerances."""
    canvas = Canvas(WIDTH, PAPER)
    note = "milliseconds of one processor, the median of several fleets of each size"
    y = heading(canvas, "Time to place a model", [note])
    lines = list(zip(cases, CATEGORIES, DASHES, strict=False))
    y = legend(canvas, [entry(c, color, "line", d) for c, color, d in lines], y + 4) + 16
    of_all = [each["median"] for values in found.values() for each in values.values()]
    across = log_scale([float(size) for values in found.values() for size in values])
    width = (RIGHT - MARGIN - _GAP * (len(tolerances) - 1)) / len(tolerances)
    bottom = y
    for number, pair in enumerate(tolerances):
        left = MARGIN + number * (width + _GAP)
        canvas.text(left + _GUTTER, y, _words(*pair), 12, INK, bold=True, room=width - _GUTTER)
        panel = Panel(
            *(left + _GUTTER, y + 18, left + width, y + 18 + _HEIGHT), across, log_scale(of_all)
        )
        panel.draw_rows(canvas, unit=" ms")
        for case, color, dashes in lines:
            values = found[f"{case}, {title(*pair)}"]
            points = [panel.at(float(size), each["median"]) for size, each in values.items()]
            canvas.path(points, color, 2, dashes=dashes)
            for x, height in points:
                canvas.rect(x - 3, height - 3, 6, 6, color, radius=3)
        bottom = panel.draw_columns(canvas, "devices")
    return canvas.to_svg(bottom + 10)


def _words(tolerance: float, hop_tolerance: float) -> str:
    """What placements count as equal."""
    parts = []
    for best, name, each in (("fastest", "pace", tolerance), ("shortest", "hops", hop_tolerance)):
        if math.isinf(each):
            parts.append(f"any {name}")
        else:
            parts.append(f"{name} within {each:.0%}" if each else f"{best} {name}")
    return ", ".join(parts)
