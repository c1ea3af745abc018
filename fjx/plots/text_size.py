"""How wide a text of a picture is, and how to make it fit.

Nobody renders a picture while it is made, so widths come from a table: those of DejaVu Sans, which
is the first font of the pictures and the widest of its list.
"""

from __future__ import annotations

import unicodedata

_WIDTHS = {
    letter: width / 100
    for width, letters in (
        (28, "'ijlIJ"),
        (32, " ,."),
        (34, "/:;\\|f"),
        (40, '-()[]t!r"'),
        (51, "*_`sz?"),
        (56, "cLFk"),
        (60, "vxyPTYao"),
        (63, "eESbdghnpqu$0123456789{}"),
        (69, "KAVBRXZC"),
        (77, "UHNDG&OQ"),
        (84, "w#+<=>^~M→"),
        (100, "%mW@…"),
    )
    for letter in letters
}
"""In font sizes."""
_OTHER, _BOLD = 0.84, 0.07
"""Of a letter that is not in the table, and what a bold one is wider."""
_END = 11
"""Letters that a shortened name ends with: about ``-12/gpu:0-7``."""


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """About how wide a text is, in pixels."""
    return size * (sum(map(_advance, text)) + (_BOLD * len(text) if bold else 0.0))


def fitted(
    text: str, room: float, size: float, *, bold: bool = False, keeps_end: bool = False
) -> str:
    """The text, shortened with an ellipsis where it is wider than ``room``.

    Args:
        text: One line.
        room: Pixels.
        size: Of the font.
        bold: Whether it is written bold.
        keeps_end: Leave out the middle, not the end: names of nodes differ at their ends.
    """
    if text_width(text, size, bold=bold) <= room:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head = max(1, (kept - _END) // 2) if keeps_end else kept
        shorter = text[:head].rstrip() + "…" + text[len(text) - (kept - head) :]
        if text_width(shorter, size, bold=bold) <= room:
            return shorter
    return "…" if text_width("…", size, bold=bold) <= room else ""


def wrapped(text: str, room: float, size: float, most: int = 3) -> list[str]:
    """The text in at most so many lines, each no wider than ``room``."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) + 1 < most:
        count = len(words)
        while count > 1 and text_width(" ".join(words[:count]), size) > room:
            count -= 1
        lines.append(fitted(" ".join(words[:count]), room, size))
        words = words[count:]
    return [*lines, fitted(" ".join(words), room, size)] if words else lines


def _advance(letter: str) -> float:
    width = _WIDTHS.get(letter)
    if width is not None:
        return width
    if unicodedata.combining(letter):
        return 0.0
    return 1.0 if unicodedata.east_asian_width(letter) in "WF" else _OTHER
