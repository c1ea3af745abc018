"""A canvas that writes SVG: rectangles, lines, polygons and texts, nothing else.

What a reader must be able to tell is written into the document, too, so that tests can check it:
``data-legend`` on the samples of a legend, ``data-axis`` on the labels of an axis.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from fjx.plots.text_size import fitted

_FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
_ASCENT = 0.36
"""From the middle of a line of text to its baseline, in font sizes."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


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
        legend: str = "",
    ) -> None:
        """A rectangle; ``title`` shows under the pointer; ``legend``: what it is a sample of."""
        inner = f"<title>{_escaped(title)}</title>" if title else ""
        self._shapes.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{height:.2f}" '
            f'rx="{radius:g}" fill="{fill}" stroke="{stroke}"{_sample(legend)}>{inner}</rect>'
        )

    def line(
        self,
        x: float,
        y: float,
        to_x: float,
        to_y: float,
        stroke: str,
        width: float = 1.0,
        *,
        dashes: str = "",
        legend: str = "",
    ) -> None:
        """A straight line; ``dashes``: lengths of dashes and gaps; ``legend``: what it is a sample
        of."""
        self._shapes.append(
            f'<line x1="{x:.2f}" y1="{y:.2f}" x2="{to_x:.2f}" y2="{to_y:.2f}" '
            f'stroke="{stroke}" stroke-width="{width:g}"{_dashed(dashes)}{_sample(legend)}/>'
        )

    def path(
        self,
        points: Sequence[tuple[float, float]],
        stroke: str,
        width: float = 1.0,
        *,
        dashes: str = "",
    ) -> None:
        """Straight lines from each point to the next."""
        through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._shapes.append(
            f'<polyline points="{through}" fill="none" stroke="{stroke}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{_dashed(dashes)}/>'
        )

    def polygon(self, points: Sequence[tuple[float, float]], fill: str) -> None:
        """A filled area."""
        through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._shapes.append(f'<polygon points="{through}" fill="{fill}"/>')

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
        keeps_end: bool = False,
        axis: str = "",
    ) -> None:
        """One line of text around the height ``middle``.

        Args:
            x: Of its beginning, middle or end, see ``anchor``.
            middle: Half the height of its letters.
            text: What it says.
            size: Of the font.
            color: Of the letters.
            anchor: start, middle or end.
            bold: Whether it is written bold.
            room: It is shortened with an ellipsis where it is wider; None: it is not.
            keeps_end: Shorten it in the middle.
            axis: Name of the axis whose tick this labels, unique in the picture.
        """
        if room is not None:
            text = fitted(text, room, size, bold=bold, keeps_end=keeps_end)
        if not text:
            return
        weight = ' font-weight="bold"' if bold else ""
        tick = f' data-axis="{escape(axis)}"' if axis else ""
        self._shapes.append(
            f'<text x="{x:.2f}" y="{middle + _ASCENT * size:.2f}" font-size="{size:g}" '
            f'fill="{color}" text-anchor="{anchor}"{weight}{tick}>{_escaped(text)}</text>'
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


def _dashed(dashes: str) -> str:
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _sample(legend: str) -> str:
    return f' data-legend="{_escaped(legend)}"' if legend else ""


def _escaped(text: str) -> str:
    """With the signs that XML reserves, and without those that it forbids."""
    return escape(_NOT_XML.sub("\ufffd", text))
