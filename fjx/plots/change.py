"""What going from one plan to another moves, as a picture: which pieces, from where to where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from fjx.plots.chart import MARGIN, RIGHT, entry, legend, paragraphs
from fjx.plots.palette import EDGE, FAINT, INK, KV, PAPER, PARAMETERS, mixed
from fjx.plots.stages import draw_memory
from fjx.plots.svg import Canvas
from fjx.plots.text_size import text_width
from fjx.sharding.costs.difference import Difference, PieceMove
from fjx.sharding.costs.table import short_devices
from fjx.sharding.plan.plan import Deployment, Device, Mesh, Plan
from fjx.wording import counted, format_bytes

_LABEL, _BAND = 62.0, 24.0
_SIZE = 11.0
_MOVES = mixed(INK, PAPER, 0.35)
_MAX_FLOWS = 40
_FROM, _TO, _BAR, _TEXT = 190.0, 360.0, 530.0, 720.0
"""Where columns begin, from the margin on."""


@dataclass(frozen=True)
class Change:
    """A way from one plan to another."""

    title: str
    """Such as ``From pipeline-2 to pipeline-4``."""
    before: Deployment
    after: Deployment
    difference: Difference


@dataclass(frozen=True)
class _Flow(Difference):
    """Pieces side by side that go the same way."""

    first: int
    """Index of the first piece."""

    @property
    def pieces(self) -> str:
        names = [move.piece for move in self.moves]
        numbers = [name.removeprefix("granule ") for name in names if name.startswith("granule ")]
        granules = f"granule {numbers[0]}" if numbers else ""
        if len(numbers) > 1:
            granules = f"granules {numbers[0]}-{numbers[-1]}"
        embed, head = "embed" * ("embed" in names), "head" * ("head" in names)
        return ", ".join(filter(None, (embed, granules, head)))


def draw_change(canvas: Canvas, y: float, change: Change) -> float:
    """Draw a change from the height ``y`` on, and return where it ends."""
    moved = change.difference
    canvas.text(MARGIN, y + 8, change.title, 16, INK, bold=True, room=RIGHT - MARGIN)
    if not moved.moves:
        return paragraphs(canvas, y + 34, ["Nothing moves: every piece is where it has to be."])
    notes = [
        f"{counted(len(moved.moves), 'piece')} of the model "
        f"{'moves' if len(moved.moves) == 1 else 'move'}, {format_bytes(moved.total_bytes)} in "
        f"all: {format_bytes(moved.parameter_bytes)} of parameters, "
        f"{format_bytes(moved.kv_bytes)} of KV pages"
    ]
    given_up = _given_up(change)
    if given_up:
        notes.append(f"given up: {short_devices(given_up)}")
    y = paragraphs(canvas, y + 34, notes)
    flows: list[_Flow] = []
    for index, plan in enumerate(change.after.replicas):
        moves = {move.piece: move for move in moved.moves if move.replica == index}
        of_replica = list(_flows(plan, moves))
        several = len(change.after.replicas) > 1
        y = _draw_map(canvas, y + 4, plan, moves, of_replica, f"replica {index + 1}" * several)
        flows += of_replica
    return _draw_flows(canvas, y + 10, flows)


def _given_up(change: Change) -> list[Device]:
    """The devices that serve no more."""
    kept = set(change.after.devices)
    return [device for device in change.before.devices if device not in kept]


def _flows(plan: Plan, moves: dict[str, PieceMove]) -> Iterator[_Flow]:
    numbered = [(n, moves[name]) for n, (name, _) in enumerate(plan.pieces()) if name in moves]

    def way(item: tuple[int, tuple[int, PieceMove]]) -> tuple[int, Mesh, Mesh]:
        place, (number, move) = item
        # Pieces side by side have the same distance between their numbers and their places.
        return number - place, move.source, move.target

    for _, run in groupby(enumerate(numbered), way):
        together = [item for _, item in run]
        yield _Flow(tuple(move for _, move in together), together[0][0])


def _draw_map(
    canvas: Canvas,
    y: float,
    plan: Plan,
    moves: dict[str, PieceMove],
    flows: Sequence[_Flow],
    title: str,
) -> float:
    """The pieces of the model from left to right: before above, after below, moves between."""
    if title:
        canvas.text(MARGIN, y + 6, title, 12, INK, bold=True)
        y += 22
    pieces = list(plan.pieces())
    left = MARGIN + _LABEL
    each = (RIGHT - left) / len(pieces)
    after = [mesh for _, mesh in pieces]
    before = [moves[name].source if name in moves else mesh for name, mesh in pieces]
    for name, meshes, top in (("before", before, y), ("after", after, y + 2 * _BAND)):
        canvas.text(MARGIN, top + _BAND / 2, name, _SIZE, INK)
        _draw_band(canvas, left, top, each, meshes)
    canvas.text(MARGIN, y + 1.5 * _BAND, "moves", _SIZE, INK)
    for flow in flows:
        x, width = left + each * flow.first, each * len(flow.moves)
        top, middle = y + _BAND + 3, y + 1.5 * _BAND
        gap = min(0.5, width / 4)
        canvas.rect(x + gap, top, width - 2 * gap, _BAND - 6, _MOVES, title=_way(flow))
        label = format_bytes(flow.total_bytes)
        if text_width(label, 10) + 6 <= width:
            canvas.text(x + width / 2, middle, label, 10, PAPER, anchor="middle")
    return _draw_pieces(canvas, left, y + 3 * _BAND, each, [name for name, _ in pieces])


def _draw_band(
    canvas: Canvas, left: float, top: float, each: float, meshes: Sequence[Mesh]
) -> None:
    at = 0
    for mesh, run in groupby(meshes):
        count = len(list(run))
        x, width = left + each * at, each * count
        devices = short_devices(mesh.devices)
        canvas.rect(x, top, width, _BAND, PAPER, stroke=FAINT, title=devices)
        canvas.text(
            x + width / 2, top + _BAND / 2, devices, _SIZE, INK, anchor="middle", room=width - 6,
            keeps_end=True,
        )  # fmt: skip
        at += count


def _draw_pieces(canvas: Canvas, left: float, y: float, each: float, names: Sequence[str]) -> float:
    """Below, which piece is which: the ends by name, granules by number as far as there is room."""
    canvas.text(MARGIN, y + 12, "piece", _SIZE, FAINT)
    ends = left
    last = left + each * len(names) - text_width("head", 10)
    for number, name in enumerate(names):
        text = name.removeprefix("granule ")
        width = text_width(text, 10)
        x = left + each * number + max(0.0, (each - width) / 2)
        if name == names[-1]:
            x = min(x, left + each * len(names) - width)
        if x >= ends and (name == names[-1] or x + width + 8 <= last):
            canvas.text(x, y + 12, text, 10, FAINT)
            ends = x + width + 8
    return y + 24


def _draw_flows(canvas: Canvas, y: float, flows: Sequence[_Flow]) -> float:
    """A line for each flow: what goes from where to where, and how many bytes."""
    y = legend(canvas, [entry("moves; below, its bytes by colour", _MOVES)], y + 5) + 12
    for x, title in ((0.0, "what"), (_FROM, "from"), (_TO, "to"), (_BAR, "bytes that cross")):
        canvas.text(MARGIN + x, y, title, _SIZE, INK, bold=True)
    y += 14
    canvas.line(MARGIN, y - 4, RIGHT, y - 4, EDGE)
    most = max(flow.total_bytes for flow in flows)
    for flow in flows[:_MAX_FLOWS]:
        y += 10
        source, target = flow.moves[0].source, flow.moves[0].target
        for x, to, text in (
            (0.0, _FROM, flow.pieces),
            (_FROM, _TO, short_devices(source.devices)),
            (_TO, _BAR, short_devices(target.devices)),
        ):
            canvas.text(MARGIN + x, y, text, _SIZE, INK, room=to - x - 8, keeps_end=x > 0)
        if flow.total_bytes:
            width = 180.0 * flow.total_bytes / most
            parts = [
                ("parameters", PARAMETERS, float(flow.parameter_bytes)),
                ("KV pages", KV, float(flow.kv_bytes)),
            ]
            draw_memory(canvas, MARGIN + _BAR, y - 6, width, 12, parts, flow.total_bytes)
            text, at = format_bytes(flow.total_bytes), _TEXT
        else:
            text, at = "nothing: it is there already", _BAR
        canvas.text(MARGIN + at, y, text, _SIZE, INK, room=RIGHT - MARGIN - at)
        y += 10
    rest = flows[_MAX_FLOWS:]
    if rest:
        left = format_bytes(sum(flow.total_bytes for flow in rest))
        canvas.text(MARGIN, y + 10, f"and {len(rest)} more, {left}", _SIZE, FAINT)
        y += 20
    return y


def _way(flow: _Flow) -> str:
    source, target = flow.moves[0].source, flow.moves[0].target
    return f"{flow.pieces}: {short_devices(source.devices)} to {short_devices(target.devices)}"
