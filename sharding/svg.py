"""A canvas that writes SVG: rectangles, lines and texts, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
_ASCENT = 0.36
"""From the middle of a line of text to its baseline, in font sizes."""
_ADVANCE = 0.62
"""Width of a letter, in font sizes: that of DejaVu Sans, which is wide, on average."""


class Canvas:
    """Collects shapes; later ones lie on top. Lengths are pixels, y grows downwards."""

    def __init__(self, width: float, background: str) -> None:
        self.width = width
        self._background = background
        self._shapes: list[str] = []

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        stroke: str = "none",
        radius: float = 0.0,
        title: str = "",
    ) -> None:
        """A rectangle; ``title`` shows under the pointer."""
        inner = f"<title>{escape(title)}</title>" if title else ""
        self._shapes.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{height:.2f}" '
            f'rx="{radius:g}" fill="{fill}" stroke="{stroke}">{inner}</rect>'
        )

    def line(
        self, x: float, y: float, to_x: float, to_y: float, stroke: str, width: float = 1.0
    ) -> None:
        """A straight line."""
        self._shapes.append(
            f'<line x1="{x:.2f}" y1="{y:.2f}" x2="{to_x:.2f}" y2="{to_y:.2f}" '
            f'stroke="{stroke}" stroke-width="{width:g}"/>'
        )

    def path(self, points: Sequence[tuple[float, float]], stroke: str, width: float = 1.0) -> None:
        """Straight lines from each point to the next."""
        through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._shapes.append(
            f'<polyline points="{through}" fill="none" stroke="{stroke}" stroke-width="{width:g}"/>'
        )

    def arrow(self, x: float, y: float, length: float, color: str) -> None:
        """An arrow to the right."""
        self.line(x, y, x + length - 5, y, color, 1.5)
        tip = x + length
        points = f"{tip:.2f},{y:.2f} {tip - 7:.2f},{y - 4:.2f} {tip - 7:.2f},{y + 4:.2f}"
        self._shapes.append(f'<polygon points="{points}" fill="{color}"/>')

    def text(
        self,
        x: float,
        middle: float,
        text: str,
        size: float,
        color: str,
        *,
        anchor: str = "start",
        bold: bool = False,
        room: float | None = None,
    ) -> None:
        """One line of text around the height ``middle``, cut off where it is longer than
        ``room``."""
        if room is not None:
            text = fitted(text, room, size)
        weight = ' font-weight="bold"' if bold else ""
        self._shapes.append(
            f'<text x="{x:.2f}" y="{middle + _ASCENT * size:.2f}" font-size="{size:g}" '
            f'fill="{color}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
        )

    def to_svg(self, height: float) -> str:
        """The picture as a document of this height."""
        shapes = "\n".join(self._shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:g}" '
            f'height="{height:.0f}" viewBox="0 0 {self.width:g} {height:.0f}" '
            f'font-family="{_FONT}">\n'
            f'<rect width="100%" height="100%" fill="{self._background}"/>\n{shapes}\n</svg>\n'
        )


def text_width(text: str, size: float) -> float:
    """About how wide a text is."""
    return len(text) * size * _ADVANCE


def fitted(text: str, room: float, size: float) -> str:
    """The text, cut off with an ellipsis where it is wider than ``room``."""
    if text_width(text, size) <= room:
        return text
    return text[: max(1, int(room / (size * _ADVANCE)) - 1)] + "…"
