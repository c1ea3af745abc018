"""What pictures share: their heading, their legends, and panels with axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fjx.plots.palette import EDGE, FAINT, GRID, INK, PAPER
from fjx.plots.svg import Canvas
from fjx.plots.text_size import fitted, text_width, wrapped
from fjx.plots.ticks import Scale

WIDTH, MARGIN = 900.0, 24.0
"""Of every picture: documents show them about as wide, so that letters keep their size."""
RIGHT = WIDTH - MARGIN
_SMALL, _LINE = 11.0, 18.0
_OUT = 18.0
"""How far the labels of an axis may reach beyond its ends."""


DASHES = ("", "7 3", "2 2", "10 3 2 3", "4 2", "1 2")
"""Of the lines of a chart, in their order: so they differ without colour, too."""
Shape = Literal["box", "dot", "cross", "hollow", "struck", "line"]
"""Of a mark: a filled box or dot, a filled box with a cross, an empty box, one with a stroke."""


@dataclass(frozen=True)
class Entry:
    """A line of a legend: what a colour means, or several shades of one."""

    label: str
    colors: tuple[str, ...]
    shape: Shape = "box"
    dashes: str = ""


def entry(label: str, color: str, shape: Shape = "box", dashes: str = "") -> Entry:
    """An entry of one colour."""
    return Entry(label, (color,), shape, dashes)


def draw_mark(
    canvas: Canvas, x: float, y: float, width: float, color: str, shape: Shape, label: str = ""
) -> None:
    """Draw a mark as wide as that, 8 pixels high, around the height ``y``; ``label``: what it is a
    sample of."""
    fill = PAPER if shape in ("hollow", "struck") else color
    radius = 4.0 if shape == "dot" else 0.0
    canvas.rect(x, y - 4, width, 8, fill, stroke=color, radius=radius, legend=label)
    if shape in ("cross", "struck"):
        ink = PAPER if shape == "cross" else color
        canvas.line(x + 1, y + 3, x + width - 1, y - 3, ink, 1.5)
    if shape == "cross":
        canvas.line(x + 1, y - 3, x + width - 1, y + 3, PAPER, 1.5)


def heading(canvas: Canvas, title: str, notes: Sequence[str] = (), *, end: str = "") -> float:
    """Draw a picture's title and lines under it, and return where they end.

    Args:
        canvas: Where.
        title: Shortened where it is too long.
        notes: The lines.
        end: Of the title, which is kept.
    """
    room = canvas.width - 2 * MARGIN - text_width(end, 18, bold=True)
    title = fitted(title, room, 18, bold=True, keeps_end=bool(end)) + end
    canvas.text(MARGIN, MARGIN + 9, title, 18, INK, bold=True, room=canvas.width - 2 * MARGIN)
    return paragraphs(canvas, MARGIN + 36, notes)


def paragraphs(canvas: Canvas, y: float, notes: Sequence[str]) -> float:
    """Draw lines of text from the height ``y`` on, and return where they end."""
    for note in notes:
        for line in wrapped(note, canvas.width - 2 * MARGIN, 12):
            canvas.text(MARGIN, y, line, 12, FAINT)
            y += _LINE
    return y


def legend(
    canvas: Canvas, entries: Sequence[Entry], y: float, *, x: float = MARGIN, right: float = RIGHT
) -> float:
    """Draw a legend from left to right, in as many lines as it takes.

    Args:
        canvas: Where.
        entries: What colours mean.
        y: The middle of the first line.
        x: Where lines begin.
        right: Where they end.

    Returns:
        Where it ends.
    """
    left = x
    for each in entries:
        samples = 22.0 if each.shape == "line" else 11.0 * len(each.colors)
        width = samples + 5 + text_width(each.label, _SMALL)
        if x > left and x + width > right:
            x, y = left, y + _LINE
        for number, color in enumerate(each.colors):
            _draw_sample(canvas, each, x + 11 * number, y, color)
        canvas.text(x + samples + 5, y, each.label, _SMALL, FAINT, room=right - x - samples - 5)
        x += width + 18
    return y + _LINE / 2


def _draw_sample(canvas: Canvas, each: Entry, x: float, y: float, color: str) -> None:
    if each.shape == "line":
        canvas.line(x, y, x + 21, y, color, 3, dashes=each.dashes, legend=each.label)
    elif each.shape == "box":
        canvas.rect(x, y - 5, 11, 10, color, stroke=EDGE, legend=each.label)
    else:
        draw_mark(canvas, x + 2, y, 8, color, each.shape, each.label)


@dataclass(frozen=True)
class Panel:
    """An area of a chart with its two scales."""

    left: float
    top: float
    right: float
    bottom: float
    x: Scale
    y: Scale

    @property
    def _place(self) -> str:
        """Names the panel's axes: no two panels are in one place."""
        return f"{self.left:.0f},{self.top:.0f}"

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is drawn."""
        return self.across(x), self.bottom - (self.bottom - self.top) * self.y.share(y)

    def across(self, x: float) -> float:
        """Where a value of the x axis is drawn."""
        return self.left + (self.right - self.left) * self.x.share(x)

    def draw_rows(self, canvas: Canvas, *, unit: str = "") -> None:
        """Draw lines across, at the ticks of the y axis, with their labels to the left."""
        for tick, label in self.y.labels():
            _, y = self.at(self.x.low, tick)
            canvas.line(self.left, y, self.right, y, GRID)
            canvas.text(
                self.left - 6, y, label + unit, _SMALL, FAINT, anchor="end", axis=f"y {self._place}"
            )

    def draw_columns(self, canvas: Canvas, title: str = "", *, grid: bool = False) -> float:
        """Draw the ticks of the x axis below, with their labels and the axis's title; return where
        they end."""
        canvas.line(self.left, self.bottom, self.right, self.bottom, EDGE)
        end = -math.inf
        for tick, label in self.x.labels():
            x, width = self.across(tick), text_width(label, _SMALL)
            # Not far out of the panel's own column, and off the label before.
            middle = min(max(x, self.left + width / 2 - _OUT), self.right - width / 2 + _OUT)
            if middle - width / 2 < end + 4:
                continue
            if grid and x > self.left:
                canvas.line(x, self.top, x, self.bottom, GRID)
            canvas.line(x, self.bottom, x, self.bottom + 4, FAINT)
            canvas.text(
                middle, self.bottom + 13, label, _SMALL, FAINT, anchor="middle",
                axis=f"x {self._place}",
            )  # fmt: skip
            end = middle + width / 2
        if title:
            middle = (self.left + self.right) / 2
            room = self.right - self.left
            canvas.text(middle, self.bottom + 30, title, _SMALL, FAINT, anchor="middle", room=room)
        return self.bottom + (38 if title else 21)
