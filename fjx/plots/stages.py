"""The stages of a plan as lines of a picture: where each is, what fills its devices, its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fjx.plots.chart import MARGIN, RIGHT, Entry, entry, legend
from fjx.plots.palette import (
    ACTIVATIONS,
    COMPUTE,
    EDGE,
    FAINT,
    FREE,
    GRID,
    INK,
    KV,
    PARAMETERS,
    RECEIVE,
)
from fjx.plots.svg import Canvas
from fjx.sharding.costs.figures import StageFigures
from fjx.sharding.topology.topology import UNKNOWN_MEMORY
from fjx.wording import format_bytes, format_seconds

_STAGE, _DEVICES, _GRANULES, _EXTRA = 0.0, 46.0, 200.0, 324.0
_MEMORY, _MEMORY_TEXT, _TIME, _TIME_TEXT = 398.0, 524.0, 654.0, 786.0
"""Where columns begin, from the margin on."""
_BAR = 120.0
_MAX_ROWS = 64
"""Stages that are drawn; how many more there are is written."""
_SIZE, _GAP = 11.0, 8.0


@dataclass(frozen=True)
class StageRow:
    """What a line says about a stage."""

    name: str
    devices: str
    granules: str
    extra: str
    """Of the fourth column."""
    figures: StageFigures


def memory_entries(kv_tokens: int | None = None) -> list[Entry]:
    """The legend of what fills a device."""
    pages = "KV pages" if kv_tokens is None else f"KV pages of {kv_tokens:,} tokens"
    return [
        entry("parameters", PARAMETERS),
        entry(pages, KV),
        entry("activations", ACTIVATIONS),
        entry("free", FREE),
    ]


def draw_stages(
    canvas: Canvas,
    y: float,
    rows: Sequence[StageRow],
    *,
    extra: str,
    kv_tokens: int | None = None,
) -> float:
    """Draw a line for each stage under a legend, from the height ``y`` on.

    Args:
        canvas: Where.
        y: The top.
        rows: The stages, of which there is at least one.
        extra: Heading of the fourth column.
        kv_tokens: For how many tokens the KV pages are; None: the legend does not say.

    Returns:
        Where they end.
    """
    entries = [
        *memory_entries(kv_tokens),
        entry("computing", COMPUTE),
        entry("receiving the input", RECEIVE),
    ]
    y = legend(canvas, entries, y + 5, right=RIGHT) + 12
    for x, title in (
        (_STAGE, "stage"),
        (_DEVICES, "devices"),
        (_GRANULES, "granules"),
        (_EXTRA, extra),
        (_MEMORY, "memory of each device"),
        (_TIME, "time of one pass"),
    ):
        canvas.text(MARGIN + x, y, title, _SIZE, INK, bold=True)
    y += 14
    canvas.line(MARGIN, y - 4, RIGHT, y - 4, EDGE)
    pitch = 26.0 if len(rows) <= 12 else 20.0
    shown = rows[:_MAX_ROWS]
    for number, row in enumerate(shown):
        _draw_row(canvas, y + pitch * number + pitch / 2, row, rows)
    y += pitch * len(shown)
    if len(rows) > len(shown):
        more = f"and {len(rows) - len(shown)} more stages"
        canvas.text(MARGIN, y + 10, more, _SIZE, FAINT)
        y += 20
    return y


def draw_memory(
    canvas: Canvas,
    x: float,
    y: float,
    width: float,
    height: float,
    parts: Sequence[tuple[str, str, float]],
    whole: float,
) -> None:
    """A bar of what fills a device.

    Args:
        canvas: Where.
        x: The left.
        y: The top.
        width: Of ``whole`` bytes.
        height: Of the bar.
        parts: Their names, colours and bytes.
        whole: What the device has; 0: nothing is known and nothing needed.
    """
    canvas.rect(x, y, width, height, FREE)
    right = x + width
    for name, color, size in parts:
        part = min(width * size / max(whole, 1), right - x)
        if size:
            canvas.rect(x, y, part, height, color, title=f"{name}: {format_bytes(size)}")
        x += part


def stage_parts(figures: StageFigures) -> list[tuple[str, str, float]]:
    """What a stage fills a device with: names, colours, bytes."""
    return [
        ("parameters", PARAMETERS, figures.parameter_bytes),
        ("KV pages", KV, figures.kv_bytes),
        ("activations", ACTIVATIONS, figures.activation_bytes),
    ]


def _draw_row(canvas: Canvas, y: float, row: StageRow, rows: Sequence[StageRow]) -> None:
    figures = row.figures
    slowest = max(each.figures.seconds for each in rows)
    for x, to, text, bold in (
        (_STAGE, _DEVICES, row.name, True),
        (_DEVICES, _GRANULES, row.devices, False),
        (_GRANULES, _EXTRA, row.granules, False),
        (_EXTRA, _MEMORY, row.extra, False),
    ):
        room = to - x - _GAP
        canvas.text(MARGIN + x, y, text, _SIZE, INK, bold=bold, room=room, keeps_end=x == _DEVICES)
    whole = figures.free_bytes
    if whole == UNKNOWN_MEMORY:
        whole = max(each.figures.needed_bytes for each in rows)
    draw_memory(canvas, MARGIN + _MEMORY, y - 6, _BAR, 12, stage_parts(figures), whole)
    text_room = _TIME - _MEMORY_TEXT - _GAP
    canvas.text(MARGIN + _MEMORY_TEXT, y, memory_text(figures), _SIZE, INK, room=text_room)
    x, scale = MARGIN + _TIME, _BAR / (slowest or 1.0)
    received, computed = figures.transfer_seconds * scale, figures.compute_seconds * scale
    canvas.line(x, y + 6, x + _BAR, y + 6, GRID)
    title = f"receiving the input: {format_seconds(figures.transfer_seconds)}"
    if received:
        canvas.rect(x, y - 6, received, 12, RECEIVE, title=title)
    if computed:
        title = f"computing: {format_seconds(figures.compute_seconds)}"
        canvas.rect(x + received, y - 6, computed, 12, COMPUTE, title=title)
    slow = figures.seconds == slowest and len(rows) > 1
    text = format_seconds(figures.seconds)
    canvas.text(
        MARGIN + _TIME_TEXT, y, text, _SIZE, INK, bold=slow, room=RIGHT - MARGIN - _TIME_TEXT
    )


def memory_text(figures: StageFigures) -> str:
    """Bytes that a stage needs, and of how many."""
    needed = format_bytes(figures.needed_bytes)
    if figures.free_bytes == UNKNOWN_MEMORY:
        return needed
    return f"{needed} of {format_bytes(figures.free_bytes)}"
