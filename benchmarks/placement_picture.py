"""The result of benchmarks/placement.py as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fjx.sharding.palette import FAINT, FREE, INK, MICROBATCHES, PAPER
from fjx.sharding.svg import Canvas

_WIDTH, _MARGIN = 1000.0, 24.0
_COLORS = dict(zip(("random", "best fit", "fgd"), MICROBATCHES, strict=False))


def picture(result: dict[str, Any]) -> str:
    """Left the check of the measure, right models placed and memory left, as SVG."""
    canvas = Canvas(_WIDTH, PAPER)
    canvas.text(_MARGIN, 26, "Models on the openb fleet", 18, INK, bold=True)
    _curves(canvas, result["fragmentation"], _MARGIN + 34, 70, 330, 300)
    y = 60.0
    for level, mix in dict.fromkeys((run["level"], run["mix"]) for run in result["runs"]):
        y = _bars(canvas, result["summary"], f"{level:.0%}, {mix}", 440, y) + 16
    return canvas.to_svg(max(y, 440))


def _curves(
    canvas: Canvas, found: dict[str, Any], x: float, y: float, width: float, height: float
) -> None:
    canvas.text(x, y - 12, "free GPU that is fragmented, %", 12, INK)
    for percent in range(0, 101, 20):
        level = y + height * (1 - percent / 100)
        canvas.line(x, level, x + width, level, FREE)
        canvas.text(x - 6, level, str(percent), 10, FAINT, anchor="end")
        across = x + width * percent / 100
        canvas.text(across, y + height + 12, str(percent), 10, FAINT, anchor="middle")
    canvas.text(x + width, y + height + 28, "% of the fleet's GPU arrived", 11, FAINT, anchor="end")
    for number, (name, curves) in enumerate(found.items()):
        _polyline(canvas, curves["published"], x, y, width, height, FAINT, 3.0)
        _polyline(canvas, curves["ours"], x, y, width, height, _COLORS[name], 1.4)
        canvas.rect(x + 10, y + 10 + 18 * number, 10, 10, _COLORS[name])
        canvas.text(x + 26, y + 15 + 18 * number, name, 11, INK)
    canvas.rect(x + 10, y + 64, 10, 10, FAINT)
    canvas.text(x + 26, y + 69, "as published (FGD)", 11, INK)


def _polyline(
    canvas: Canvas,
    values: Sequence[float],
    x: float,
    y: float,
    width: float,
    height: float,
    color: str,
    stroke: float,
) -> None:
    points = [
        (x + width * k / (len(values) - 1), y + height * (1 - v / 100))
        for k, v in enumerate(values)
    ]
    for (a, b), (c, d) in pairwise(points):
        canvas.line(a, b, c, d, color, stroke)


def _bars(canvas: Canvas, summary: dict[str, Any], group: str, x: float, y: float) -> float:
    """One bar for each placer: models before the first is refused, and memory that is left."""
    canvas.text(x, y, f"fleet filled to {group}", 12, INK, bold=True)
    canvas.text(x + 150, y + 18, "models before one is refused", 10, FAINT)
    canvas.text(x + 350, y + 18, "memory that no model can use, TiB", 10, FAINT)
    columns = (("models_before_first_refusal", 150.0, "{:.0f}"), ("left_tib", 350.0, "{:.2f}"))
    found = {
        name.removeprefix(group + ", "): values
        for name, values in summary.items()
        if name.startswith(group + ", ")
    }
    for number, (placer, values) in enumerate(found.items()):
        middle = y + 34 + 16 * number
        ours = placer.startswith("fjx")
        canvas.text(x, middle, placer, 11, INK, bold=ours)
        for key, shift, form in columns:
            most = max(each[key]["mean"] for each in found.values())
            mean = values[key]["mean"]
            color = MICROBATCHES[2] if ours else MICROBATCHES[0]
            canvas.rect(x + shift, middle - 5, 120 * mean / most, 10, color)
            canvas.text(x + shift + 126, middle, form.format(mean), 10, FAINT)
    return y + 34 + 16 * len(found)
