"""Placements as a picture: racks, their nodes, what is free on devices and what stages take.

Racks without a stage are a line each, so that a picture of thousands of devices shows what matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fjx.sharding.errors import counted
from fjx.sharding.fields import format_bytes
from fjx.sharding.fleet import Fleet
from fjx.sharding.needs import StageNeed
from fjx.sharding.palette import FAINT, FREE, INK, MICROBATCHES, PAPER
from fjx.sharding.placement import Placement
from fjx.sharding.placement_scorers import Demand
from fjx.sharding.placement_table import placement_summary
from fjx.sharding.svg import Canvas
from fjx.sharding.topology import UNKNOWN_MEMORY

_WIDTH, _MARGIN = 1000.0, 24.0
_DEVICE, _HEIGHT, _GAP = 30.0, 44.0, 4.0
_PER_ROW = 16
"""Most devices side by side in a node."""
_NARROWEST = 120.0
_MOST_NODES = 64
"""Nodes that a rack shows; those with stages come first."""
_MOST_LINES = 12
"""Racks without stages that are named."""


def placement_svg(fleet: Fleet, placements: Sequence[Placement], demands: Sequence[Demand]) -> str:
    """Draw placements on one fleet, 1000 pixels wide.

    Args:
        fleet: What was free before the first of them.
        placements: In the order in which they were made.
        demands: What memory must be of use for.

    Returns:
        An SVG document.
    """
    canvas, y, room = Canvas(_WIDTH, PAPER), _MARGIN, _WIDTH - 2 * _MARGIN
    before = fleet
    for number, placement in enumerate(placements, start=1):
        count = f", {number} of {len(placements)}" if len(placements) > 1 else ""
        canvas.text(_MARGIN, y + 9, placement.need.model + count, 18, INK, bold=True, room=room)
        y += 33
        for line in placement_summary(before, placement, demands):
            canvas.text(_MARGIN, y, line, 12, FAINT, room=room)
            y += 19
        before, y = placement.occupy(before), y + 10
    drawing = _Drawing(canvas, fleet, _stages_by_device(placements))
    return canvas.to_svg(drawing.racks(drawing.legend(y)) + _MARGIN)


def _stages_by_device(placements: Sequence[Placement]) -> dict[int, list[tuple[int, StageNeed]]]:
    """The stages of each device, by its index, with their numbers."""
    found: dict[int, list[tuple[int, StageNeed]]] = {}
    for placement in placements:
        for number, indices in enumerate(placement.indices):
            for index in indices:
                found.setdefault(index, []).append((number, placement.need.stages[number]))
    return found


@dataclass(frozen=True)
class _Drawing:
    canvas: Canvas
    fleet: Fleet
    stages: dict[int, list[tuple[int, StageNeed]]]

    def legend(self, y: float) -> float:
        x = _MARGIN
        for color, label in ((FREE, "free memory"), (MICROBATCHES[0], "a stage, by its number")):
            self.canvas.rect(x, y - 5, 10, 10, color, stroke=FAINT)
            self.canvas.text(x + 15, y, label, 11, FAINT)
            x += 38 + 6.9 * len(label)
        return y + 22

    def racks(self, y: float) -> float:
        """Draw all racks from ``y`` on, and return where they end."""
        fleet = self.fleet
        used = {int(fleet.rack[fleet.node[index]]) for index in self.stages}
        for rack in sorted(used):
            y = self._rack(rack, y) + 14
        others = [rack for rack in range(int(fleet.rack.max()) + 1) if rack not in used]
        for rack in others[:_MOST_LINES]:
            line = f"{self._rack_name(rack)}: {self._in_words(np.flatnonzero(fleet.rack == rack))}"
            self.canvas.text(_MARGIN, y + 6, line, 11, FAINT, room=_WIDTH - 2 * _MARGIN)
            y += 18
        if len(others) > _MOST_LINES:
            rest = np.flatnonzero(np.isin(fleet.rack, others[_MOST_LINES:]))
            line = f"{counted(len(others) - _MOST_LINES, 'more rack')}: {self._in_words(rest)}"
            self.canvas.text(_MARGIN, y + 6, line, 11, FAINT)
            y += 18
        return y

    def _rack(self, rack: int, y: float) -> float:
        nodes = np.flatnonzero(self.fleet.rack == rack).tolist()
        used = {int(self.fleet.node[index]) for index in self.stages}
        nodes.sort(key=lambda node: node not in used)
        shown, hidden = nodes[:_MOST_NODES], nodes[_MOST_NODES:]
        title = f"{self._rack_name(rack)}: {self._in_words(np.array(nodes))}"
        top, x, tallest = y + 30, _MARGIN + 10, 0.0
        boxes = []
        for node in shown:
            width, height = self._size(node)
            if x + width > _WIDTH - _MARGIN - 10 and tallest:
                top, x, tallest = top + tallest + 8, _MARGIN + 10, 0.0
            boxes.append((node, x, top, width, height))
            x, tallest = x + width + 8, max(tallest, height)
        bottom = top + tallest + 10 + (18 if hidden else 0)
        self.canvas.rect(
            _MARGIN, y, _WIDTH - 2 * _MARGIN, bottom - y, "white", stroke="#b8c0cc", radius=6
        )
        room = _WIDTH - 2 * _MARGIN - 20
        self.canvas.text(_MARGIN + 10, y + 15, title, 12, INK, bold=True, room=room)
        for box in boxes:
            self._node(*box)
        if hidden:
            line = f"and {self._in_words(np.array(hidden))}"
            self.canvas.text(_MARGIN + 10, bottom - 12, line, 11, FAINT)
        return bottom

    def _size(self, node: int) -> tuple[float, float]:
        count = int(np.count_nonzero(self.fleet.node == node))
        columns, rows = min(count, _PER_ROW), -(-count // _PER_ROW)
        width = max(_NARROWEST, 16 + columns * (_DEVICE + _GAP) - _GAP)
        return width, 28 + rows * (_HEIGHT + _GAP)

    def _node(self, node: int, x: float, y: float, width: float, height: float) -> None:
        self.canvas.rect(x, y, width, height, PAPER, stroke=FREE, radius=4)
        self.canvas.text(x + 8, y + 12, self.fleet.hosts[node], 10, FAINT, room=width - 16)
        for place, device in enumerate(np.flatnonzero(self.fleet.node == node).tolist()):
            row, column = divmod(place, _PER_ROW)
            left, top = x + 8 + column * (_DEVICE + _GAP), y + 22 + row * (_HEIGHT + _GAP)
            self._device(device, left, top)

    def _device(self, device: int, x: float, y: float) -> None:
        """Free memory as a column, as high as it is of the most that any device has."""
        free = int(self.fleet.free_bytes[device])
        stages = self.stages.get(device, [])
        known = free < UNKNOWN_MEMORY
        taken = sum(stage.needed_bytes for _, stage in stages)
        scale = _HEIGHT / max(self._most() if known else taken, 1)
        label = f"{self.fleet.devices[device]}: {format_bytes(free) if known else '?'} free"
        self.canvas.rect(x, y, _DEVICE, _HEIGHT, "white", stroke=FREE, title=label)
        height = free * scale if known else _HEIGHT
        self.canvas.rect(x, y + _HEIGHT - height, _DEVICE, height, FREE, title=label)
        base = y + _HEIGHT
        for number, stage in stages:
            high = stage.needed_bytes * scale
            color = MICROBATCHES[number % len(MICROBATCHES)]
            what = f"stage {number + 1}: {format_bytes(stage.needed_bytes)}; {label}"
            self.canvas.rect(x, base - high, _DEVICE, high, color, title=what)
            base -= high
        if stages:
            numbers = ",".join(str(number + 1) for number, _ in stages)
            middle, room = x + _DEVICE / 2, _DEVICE
            self.canvas.text(
                middle, y + 10, numbers, 10, INK, anchor="middle", bold=True, room=room
            )

    def _most(self) -> int:
        free = self.fleet.free_bytes
        return int(free[free < UNKNOWN_MEMORY].max(initial=0))

    def _rack_name(self, rack: int) -> str:
        names = dict(self.fleet.topology.racks)
        host = self.fleet.hosts[int(np.flatnonzero(self.fleet.rack == rack)[0])]
        return f"rack {names[host]}" if host in names else "no rack"

    def _in_words(self, nodes: np.ndarray) -> str:
        devices = np.isin(self.fleet.node, nodes)
        free = self.fleet.free_bytes[devices]
        known = free[free < UNKNOWN_MEMORY]
        room = f", {format_bytes(int(known.sum()))} free" if len(known) else ""
        return f"{counted(len(nodes), 'node')}, {counted(int(devices.sum()), 'device')}{room}"
