"""The timeline under a plan's picture: which stage works on which microbatch, and the bubbles."""

from __future__ import annotations

from collections.abc import Sequence

from fjx.sharding.fields import format_seconds
from fjx.sharding.figures import StageFigures
from fjx.sharding.palette import FAINT, FREE, INK, MICROBATCHES
from fjx.sharding.svg import Canvas, text_width
from fjx.sharding.timeline import schedule

_ROUNDS = 3
_LABEL = 62.0
"""Room for the names of the stages."""


def draw_timeline(
    canvas: Canvas,
    stages: Sequence[StageFigures],
    microbatches: int,
    *,
    left: float,
    top: float,
    right: float,
) -> float:
    """Draw the first rounds of the pipeline, and return where the drawing ends.

    Microbatches have their numbers and colours, rounds alternate in strength; what a stage spends
    receiving is pale, what it spends idle is the background.
    """
    slots = schedule(stages, microbatches, _ROUNDS)
    whole = max(slot.end for slot in slots) or 1.0
    pitch = 18.0 if len(stages) <= 16 else 12.0
    begin, width = left + _LABEL, right - left - _LABEL
    heading = (
        f"{_ROUNDS} rounds of an empty pipeline, microbatches by number and colour; "
        "pale: receiving its input; grey: idle"
    )
    canvas.text(left, top + 8, heading, 12, INK)
    top += 26
    for index in range(len(stages)):
        y = top + index * pitch
        canvas.text(left, y + pitch / 2 - 1, f"stage {index + 1}", min(11, pitch - 2), FAINT)
        canvas.rect(begin, y, width, pitch - 2, FREE)
    for slot in slots:
        y, x = top + slot.stage * pitch, begin + width * slot.begin / whole
        at, end = begin + width * slot.received / whole, begin + width * slot.end / whole
        color = MICROBATCHES[slot.microbatch % len(MICROBATCHES)]
        name = f"round {slot.round + 1}, microbatch {slot.microbatch + 1}"
        canvas.rect(x, y, at - x, pitch - 2, _mixed(color, 0.75))
        shade = _mixed(color, 0.4 * (slot.round % 2))
        # The paper between two boxes is half a pixel, but a box never vanishes.
        canvas.rect(at, y, max(end - at - 0.5, 0.3), pitch - 2, shade, title=name)
        label = f"{slot.microbatch + 1}"
        if text_width(label, 10) + 3 < end - at and pitch >= 14:
            ink = INK if slot.round % 2 else "white"
            canvas.text((at + end) / 2, y + pitch / 2 - 1, label, 10, ink, anchor="middle")
    bottom = top + len(stages) * pitch
    for part in range(5):
        x = begin + width * part / 4
        canvas.line(x, bottom, x, bottom + 4, FAINT)
        anchor = ("start", "middle", "middle", "middle", "end")[part]
        canvas.text(x, bottom + 12, format_seconds(whole * part / 4), 10, FAINT, anchor=anchor)
    return bottom + 20


def _mixed(color: str, white: float) -> str:
    """A colour ``#rrggbb`` with a share of white."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * white):02x}" for part in parts)
