"""A training as a picture: its loss, and how often drafts are right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fjx.plots.chart import DASHES, MARGIN, RIGHT, WIDTH, Entry, Panel, entry, heading, legend
from fjx.plots.palette import BLUE, CATEGORIES, FAINT, INK, PAPER, shades
from fjx.plots.svg import Canvas
from fjx.plots.ticks import Scale, scale_to

_LEFT, _HEIGHT = 72.0, 190.0
_POINTS = 60
"""Points of a curve of losses; more steps are averaged, because single ones are noise."""

Points = Sequence[tuple[float, float]]


def training_svg(title: str, log: Sequence[dict[str, Any]]) -> str:
    """Draw the log of a training, see `fjx.distill.train`: above the loss, below the acceptance of
    greedy drafts of held-out prompts, by draft position.

    Returns:
        An SVG document, 900 pixels wide.
    """
    steps = [line for line in log if line["kind"] == "step"]
    positions = max((len(line["cross_entropy"]) for line in steps), default=0)
    losses = [
        [
            (line["step"], line["cross_entropy"][number])
            for line in steps
            if len(line["cross_entropy"]) > number
        ]
        for number in range(positions)
    ]
    measured = [line for line in log if line["kind"] == "acceptance" and "greedy" in line]
    accepted = [
        [
            (line["step"], line["greedy"]["by_position"][number])
            for line in measured
            if len(line["greedy"]["by_position"]) > number
        ]
        for number in range(positions)
    ]
    return curves_svg(title, losses, accepted)


def curves_svg(title: str, losses: Sequence[Points], accepted: Sequence[Points]) -> str:
    """Draw losses and shares of accepted tokens, by training step, for each draft position.

    Returns:
        An SVG document, 900 pixels wide.
    """
    canvas = Canvas(WIDTH, PAPER)
    y = heading(canvas, title)
    colors, entries = _colors(len(losses))
    y = legend(canvas, entries, y + 2) + 14
    last = max((x for points in (*losses, *accepted) for x, _ in points), default=1.0)
    across = scale_to(last, most=6, exact=True)
    averaged = max(1, round(last / _POINTS))
    losses = [_averaged(points, averaged) for points in losses]
    largest = max((value for points in losses for _, value in points), default=1.0)
    of_steps = f", means over {averaged} steps" if averaged > 1 else ""
    above = f"Loss: cross-entropy against the target, nats{of_steps}"
    y = _draw_panel(canvas, y, above, losses, colors, across, scale_to(largest)) + 20
    below = "Accepted, of the drafted tokens whose position is reached: greedy, held-out prompts"
    best = max((value for points in accepted for _, value in points), default=1.0)
    y = _draw_panel(canvas, y, below, accepted, colors, across, scale_to(best))
    return canvas.to_svg(y + 12)


def _colors(positions: int) -> tuple[tuple[str, ...], list[Entry]]:
    """A colour for each position, and what they mean; many positions are shades of one."""
    if positions <= len(CATEGORIES):
        colors: tuple[str, ...] = CATEGORIES[:positions]
        names = [f"draft position {number}" for number in range(1, positions + 1)]
        lines = zip(names, colors, DASHES, strict=False)
        return colors, [entry(name, color, "line", dashes) for name, color, dashes in lines]
    colors = shades(BLUE, positions)
    label = f"draft positions 1 to {positions}, from dark to light"
    return colors, [Entry(label, tuple(dict.fromkeys(colors)))]


def _draw_panel(
    canvas: Canvas,
    top: float,
    title: str,
    curves: Sequence[Points],
    colors: Sequence[str],
    across: Scale,
    scale: Scale,
) -> float:
    """Draw curves under their title; returns where the panel ends."""
    canvas.text(MARGIN, top, title, 13, INK, bold=True, room=RIGHT - MARGIN)
    panel = Panel(_LEFT, top + 20, RIGHT, top + 20 + _HEIGHT, across, scale)
    panel.draw_rows(canvas)
    if not any(curves):
        middle = (panel.top + panel.bottom) / 2
        canvas.text(_LEFT + 12, middle - 12, "nothing was measured yet", 12, FAINT)
    for number, (points, color) in enumerate(zip(curves, colors, strict=True)):
        placed = [panel.at(*point) for point in points]
        if len(placed) > 1:
            dashes = DASHES[number] if len(curves) <= len(DASHES) else ""
            canvas.path(placed, color, 2, dashes=dashes)
        elif placed:
            ((x, y),) = placed
            canvas.rect(min(x, RIGHT - 3) - 3, y - 3, 6, 6, color, radius=3)
    return panel.draw_columns(canvas, "training steps")


def _averaged(points: Points, steps: int) -> Points:
    """The means over so many steps each."""
    runs = [list(run) for _, run in groupby(points, lambda point: int(point[0]) // steps)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
