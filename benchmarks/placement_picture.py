"""The result of benchmarks/placement.py as a picture."""

from __future__ import annotations

from typing import Any

from fjx.plots.chart import DASHES, MARGIN, RIGHT, WIDTH, Panel, entry, heading, legend
from fjx.plots.palette import BLUE, FAINT, GREEN, INK, ORANGE, PAPER, PURPLE, SKY
from fjx.plots.svg import Canvas
from fjx.plots.ticks import Scale

_COLORS = dict(zip(("random", "best fit", "fgd"), (PURPLE, ORANGE, SKY), strict=True))
_PUBLISHED, _OURS, _OTHERS = "#c3cad2", GREEN, BLUE
_MIXES = {
    "both": "OPT-66B and Llama-2-7B",
    "opt-66b": "OPT-66B only",
    "llama-2-7b": "Llama-2-7B only",
}
_PERCENT = Scale(0.0, 100.0, (0.0, 20.0, 40.0, 60.0, 80.0, 100.0))
_GROUP, _ROW, _NAME = 416.0, 18.0, 140.0
_BARS = (
    ("models_before_first_refusal", "models placed", "{:.0f}", _NAME),
    ("left_tib", "memory left, TiB", "{:.2f}", _NAME + 142.0),
)
_BAR = 84.0


def picture(result: dict[str, Any]) -> str:
    """Above the check of the measure, below models placed and memory left, as SVG."""
    canvas = Canvas(WIDTH, PAPER)
    y = heading(canvas, "Models on the openb fleet")
    y = _curves(canvas, result["fragmentation"], y) + 24
    title = "Models placed before the first is refused, and memory that none can use in the end"
    canvas.text(MARGIN, y, title, 13, INK, bold=True)
    entries = [entry("fjx", _OURS), entry("other placers", _OTHERS)]
    y = legend(canvas, entries, y + 22) + 18
    groups = list(dict.fromkeys((run["level"], run["mix"]) for run in result["runs"]))
    for first in range(0, len(groups), 2):
        ends = []
        for column, (level, mix) in enumerate(groups[first : first + 2]):
            found = {
                name.removeprefix(f"{level:.0%}, {mix}, "): values
                for name, values in result["summary"].items()
                if name.startswith(f"{level:.0%}, {mix}, ")
            }
            heads = f"{level:.0%} of the GPUs taken; {_MIXES[mix]}"
            ends.append(_bars(canvas, found, heads, MARGIN + column * (_GROUP + 20), y))
        y = max(ends) + 20
    return canvas.to_svg(y)


def _curves(canvas: Canvas, found: dict[str, Any], y: float) -> float:
    title = "Check of the measure: free GPU that is fragmented, %"
    canvas.text(MARGIN, y + 4, title, 13, INK, bold=True)
    lines = dict(zip(found, DASHES, strict=False))
    entries = [entry(f"{name}, here", _COLORS[name], "line", lines[name]) for name in found]
    entries.append(entry("as published (FGD), under each", _PUBLISHED, "line"))
    y = legend(canvas, entries, y + 26) + 12
    panel = Panel(MARGIN + 36, y, RIGHT, y + 220, _PERCENT, _PERCENT)
    panel.draw_rows(canvas)
    for key, width in (("published", 6.0), ("ours", 2.0)):
        for name, curves in found.items():
            values = curves[key]
            points = [panel.at(100 * k / (len(values) - 1), v) for k, v in enumerate(values)]
            if key == "ours":
                canvas.path(points, _COLORS[name], width, dashes=lines[name])
            else:
                canvas.path(points, _PUBLISHED, width)
    return panel.draw_columns(canvas, "GPU that has arrived, % of the fleet's")


def _bars(canvas: Canvas, found: dict[str, Any], title: str, x: float, y: float) -> float:
    """One row for each placer."""
    canvas.text(x, y, title, 12, INK, bold=True, room=_GROUP)
    for key, label, form, shift in _BARS:
        canvas.text(x + shift, y + 20, label, 11, FAINT)
        most = max(each[key]["mean"] for each in found.values())
        for number, (placer, values) in enumerate(found.items()):
            middle, mean = y + 38 + _ROW * number, values[key]["mean"]
            color = _OURS if placer.startswith("fjx") else _OTHERS
            canvas.rect(x + shift, middle - 6, _BAR * mean / (most or 1.0), 12, color)
            canvas.text(x + shift + _BAR + 6, middle, form.format(mean), 11, INK)
    for number, placer in enumerate(found):
        bold = placer.startswith("fjx")
        middle = y + 38 + _ROW * number
        canvas.text(x, middle, placer, 11, INK, bold=bold, room=_NAME - 2)
    return y + 38 + _ROW * len(found)
