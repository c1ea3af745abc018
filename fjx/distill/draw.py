"""A training as a picture: its loss, and how often drafts are right."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from fjx.sharding.palette import FAINT, INK, KV, PAPER, PARAMETERS, TIME
from fjx.sharding.svg import Canvas, text_width

_WIDTH, _MARGIN, _LEFT = 900.0, 24.0, 76.0
_RIGHT = _WIDTH - _MARGIN
_HEIGHT = 200.0
_GRID = "#d5dbe2"
_COLORS = (PARAMETERS, TIME, KV, "#7d8f35", "#b3578f", "#9aa5b1", "#c2504f", "#4f86c2")
_POINTS = 300
"""Points of a curve; more are averaged."""

Curve = tuple[str, Sequence[tuple[float, float]]]


def training_svg(title: str, log: Sequence[dict[str, Any]]) -> str:
    """Draw the log of a training, see `fjx.distill.train`: above the loss, below the acceptance of
    greedy drafts of held-out prompts, by draft position.

    Returns:
        An SVG document.
    """
    steps = [line for line in log if line["kind"] == "step"]
    passes = max((len(line["cross_entropy"]) for line in steps), default=0)
    losses: list[Curve] = [
        (
            f"position {number + 1}",
            [
                (line["step"], line["cross_entropy"][number])
                for line in steps
                if len(line["cross_entropy"]) > number
            ],
        )
        for number in range(passes)
    ]
    measured = [line for line in log if line["kind"] == "acceptance" and "greedy" in line]
    accepted: list[Curve] = [
        (
            f"position {number + 1}",
            [(line["step"], line["greedy"]["by_position"][number]) for line in measured],
        )
        for number in range(passes)
    ]
    canvas = Canvas(_WIDTH, PAPER)
    canvas.text(_MARGIN, _MARGIN + 9, title, 16, INK, bold=True, room=_RIGHT - _MARGIN)
    last = max((line["step"] for line in log), default=1)
    y = _panel(canvas, _MARGIN + 40, "cross-entropy against the target, nats", losses, last, None)
    y = _panel(canvas, y + 20, "accepted where reached, greedy, held out", accepted, last, 1.0)
    canvas.text(_RIGHT, y - 14, "steps", 10, FAINT, anchor="end")
    return canvas.to_svg(y + 8)


def _panel(
    canvas: Canvas, top: float, title: str, curves: Sequence[Curve], last: float, most: float | None
) -> float:
    """Draw curves under their title; returns where the panel ends."""
    canvas.text(_LEFT, top, title, 12, INK)
    x = _LEFT + text_width(title, 12) + 20
    for (label, _), color in zip(curves, itertools.cycle(_COLORS), strict=False):
        canvas.line(x, top, x + 12, top, color, 2)
        canvas.text(x + 17, top, label, 11, FAINT)
        x += 30 + text_width(label, 11)
    top += 14
    bottom = top + _HEIGHT
    largest = most or max((y for _, points in curves for _, y in points), default=1.0)
    for fifth in range(6):
        y = bottom - _HEIGHT * fifth / 5
        canvas.line(_LEFT, y, _RIGHT, y, _GRID)
        canvas.text(_LEFT - 6, y, f"{largest * fifth / 5:.2g}", 10, FAINT, anchor="end")
        at = _LEFT + (_RIGHT - _LEFT) * fifth / 5
        canvas.text(at, bottom + 12, f"{last * fifth / 5:.0f}", 10, FAINT, anchor="middle")
    for (_, points), color in zip(curves, itertools.cycle(_COLORS), strict=False):
        placed = [
            (_LEFT + (_RIGHT - _LEFT) * x / last, bottom - _HEIGHT * min(y / largest, 1.0))
            for x, y in _averaged(points)
        ]
        for before, after in itertools.pairwise(placed):
            canvas.line(*before, *after, color, 1.5)
    return bottom + 26


def _averaged(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    each = max(1, len(points) // _POINTS)
    runs = [points[begin : begin + each] for begin in range(0, len(points), each)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
