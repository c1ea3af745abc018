"""Racks, their nodes and their devices as a picture, with the stages that placements put there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from fjx.plots.chart import MARGIN, RIGHT
from fjx.plots.palette import ACTIVATIONS, EDGE, FAINT, GRID, INK, KV, PAPER, PARAMETERS
from fjx.plots.stages import draw_memory
from fjx.plots.svg import Canvas
from fjx.plots.text_size import fitted
from fjx.sharding.costs.table import short_numbers
from fjx.sharding.partition.needs import StageNeed
from fjx.sharding.placement.placement import Placement
from fjx.sharding.topology.fleet import Fleet
from fjx.sharding.topology.topology import UNKNOWN_MEMORY
from fjx.wording import counted, format_bytes

_CARD, _HEIGHT, _GAP = 94.0, 60.0, 6.0
_PER_ROW = 8
_MAX_DEVICES = 16
"""Devices that a node shows; those with stages come first."""
_MAX_NODES = 32
"""Nodes with stages that a rack shows."""
_SMALL_RACK = 24
"""Devices of a rack that is drawn whole."""
_MAX_LINES = 12
"""Racks without stages that are named."""
_SIZE = 11.0
_NAME = 360.0
"""Room for the name of a rack."""

_Tenant = tuple[int, int, StageNeed]
"""A stage on a device: number of its placement, its own number, what it needs."""


class RackDrawing:
    """Draws the racks of a fleet; ``fleet`` is as it was before the placements."""

    def __init__(self, canvas: Canvas, fleet: Fleet, placements: Sequence[Placement]) -> None:
        self._canvas, self._fleet = canvas, fleet
        self._several = len(placements) > 1
        self._tenants: dict[int, list[_Tenant]] = {}
        for place, placement in enumerate(placements, start=1):
            for number, indices in enumerate(placement.indices):
                tenant = (place, number + 1, placement.need.stages[number])
                for index in indices:
                    self._tenants.setdefault(index, []).append(tenant)
        self._used_nodes = {int(fleet.node[index]) for index in self._tenants}
        racks = fleet.rack[list(self._used_nodes)]
        free = fleet.free_bytes[np.isin(fleet.rack[fleet.node], racks)]
        known = free[free < UNKNOWN_MEMORY]
        taken = [self._taken(index) for index in self._tenants]
        self._most = max(int(known.max(initial=0)), *taken, 1)

    def draw(self, y: float) -> float:
        """Draw all racks from ``y`` on, and return where they end."""
        fleet = self._fleet
        used = sorted({int(fleet.rack[node]) for node in self._used_nodes})
        for rack in used:
            y = self._draw_rack(rack, y) + 12
        others = [rack for rack in range(int(fleet.rack.max()) + 1) if rack not in used]
        for rack in others[:_MAX_LINES]:
            line = f"{self._rack_name(rack)}: {self._in_words(np.flatnonzero(fleet.rack == rack))}"
            self._canvas.text(MARGIN, y + 6, line, _SIZE, FAINT, room=RIGHT - MARGIN)
            y += 18
        if len(others) > _MAX_LINES:
            rest = np.flatnonzero(np.isin(fleet.rack, others[_MAX_LINES:]))
            line = f"{counted(len(others) - _MAX_LINES, 'more rack')}: {self._in_words(rest)}"
            self._canvas.text(MARGIN, y + 6, line, _SIZE, FAINT)
            y += 18
        return y

    def _draw_rack(self, rack: int, y: float) -> float:
        """The nodes with stages side by side; the others too in a small rack, else in words."""
        nodes = np.flatnonzero(self._fleet.rack == rack).tolist()
        used = [node for node in nodes if node in self._used_nodes]
        small = np.count_nonzero(np.isin(self._fleet.node, nodes)) <= _SMALL_RACK
        shown = nodes if small else used[:_MAX_NODES]
        rest = [node for node in nodes if node not in shown]
        top, x, tallest = y + 30, MARGIN + 10, 0.0
        boxes = []
        for node in shown:
            width, height = self._size(node)
            if x + width > RIGHT - 10 and tallest:
                top, x, tallest = top + tallest + 8, MARGIN + 10, 0.0
            boxes.append((node, x, top, width, height))
            x, tallest = x + width + 8, max(tallest, height)
        bottom = top + tallest + 10 + (18 if rest else 0)
        self._canvas.rect(MARGIN, y, RIGHT - MARGIN, bottom - y, PAPER, stroke=EDGE, radius=6)
        title = f"{self._rack_name(rack)}: {self._in_words(np.array(nodes))}"
        room = RIGHT - MARGIN - 20
        self._canvas.text(MARGIN + 10, y + 15, title, 12, INK, bold=True, room=room)
        for box in boxes:
            self._draw_node(*box)
        if rest:
            stages = "" if len(shown) < len(used) else " without a stage"
            line = f"and {self._in_words(np.array(rest))}{stages}"
            self._canvas.text(MARGIN + 10, bottom - 13, line, _SIZE, FAINT, room=room)
        return bottom

    def _devices(self, node: int) -> tuple[list[int], list[int]]:
        """Those of a node that are drawn, and the rest."""
        devices = np.flatnonzero(self._fleet.node == node).tolist()
        if len(devices) <= _MAX_DEVICES:
            return devices, []
        first = sorted(devices, key=lambda device: device not in self._tenants)
        return sorted(first[:_MAX_DEVICES]), first[_MAX_DEVICES:]

    def _size(self, node: int) -> tuple[float, float]:
        shown, rest = self._devices(node)
        columns, rows = min(len(shown), _PER_ROW), -(-len(shown) // _PER_ROW)
        width = 16 + columns * (_CARD + _GAP) - _GAP
        return max(width, 2 * _CARD + _GAP + 16 if rest else width), (
            28 + rows * (_HEIGHT + _GAP) + (16 if rest else 0)
        )

    def _draw_node(self, node: int, x: float, y: float, width: float, height: float) -> None:
        canvas, (shown, rest) = self._canvas, self._devices(node)
        canvas.rect(x, y, width, height, PAPER, stroke=GRID, radius=4)
        host = self._fleet.hosts[node]
        canvas.text(x + 8, y + 12, host, _SIZE, INK, room=width - 16, keeps_end=True)
        for place, device in enumerate(shown):
            row, column = divmod(place, _PER_ROW)
            left, top = x + 8 + column * (_CARD + _GAP), y + 22 + row * (_HEIGHT + _GAP)
            self._draw_device(device, left, top)
        if rest:
            stages = sum(device in self._tenants for device in rest)
            line = f"and {counted(len(rest), 'more device')}, {stages} of them with stages"
            canvas.text(x + 8, y + height - 12, line, _SIZE, FAINT, room=width - 16)

    def _draw_device(self, device: int, x: float, y: float) -> None:
        """Its name, its stages, a bar of its memory, and what is left of that."""
        canvas, tenants = self._canvas, self._tenants.get(device, [])
        free = int(self._fleet.free_bytes[device])
        known, taken = free < UNKNOWN_MEMORY, self._taken(device)
        key = self._fleet.devices[device]
        canvas.rect(
            x, y, _CARD, _HEIGHT, PAPER, stroke=FAINT if tenants else GRID, radius=3,
            title=f"{key}: {format_bytes(free) if known else 'unknown'} free before",
        )  # fmt: skip
        left, room = x + 6, _CARD - 12
        canvas.text(left, y + 11, f"{key.platform}:{key.index}", 10, FAINT, room=room)
        if tenants:
            canvas.text(left, y + 25, self._names(tenants), _SIZE, INK, bold=True, room=room)
        parts = [
            ("parameters", PARAMETERS, float(sum(need.parameter_bytes for *_, need in tenants))),
            ("KV pages", KV, float(sum(need.kv_bytes for *_, need in tenants))),
            ("activations", ACTIVATIONS, float(sum(n.activation_bytes for *_, n in tenants))),
        ]
        whole = free if known else self._most
        if whole:
            draw_memory(canvas, left, y + 34, room * whole / self._most, 9, parts, whole)
        amount = f"{format_bytes(max(free - taken, 0))} " if known else f"{format_bytes(taken)} "
        words = ("left" if tenants else "free") if known else "taken"
        canvas.text(left, y + 52, amount + words, 10, FAINT, room=room)

    def _names(self, tenants: Sequence[_Tenant]) -> str:
        """Such as ``stage 3``, ``stages 3-4``, ``1: stage 3`` or ``1: 3-4, 2: 1``."""
        if len(tenants) == 1:
            ((place, number, _),) = tenants
            return f"{place}: stage {number}" if self._several else f"stage {number}"
        parts = [
            (place, short_numbers(number for _, number, _ in of_place))
            for place, of_place in groupby(tenants, lambda tenant: tenant[0])
        ]
        if self._several:
            return ", ".join(f"{place}: {numbers}" for place, numbers in parts)
        return f"stages {parts[0][1]}"

    def _taken(self, device: int) -> int:
        return sum(need.needed_bytes for *_, need in self._tenants.get(device, []))

    def _rack_name(self, rack: int) -> str:
        names = dict(self._fleet.topology.racks)
        host = self._fleet.hosts[int(np.flatnonzero(self._fleet.rack == rack)[0])]
        if host not in names:
            return "no rack"
        return f"rack {fitted(names[host], _NAME, _SIZE, bold=True, keeps_end=True)}"

    def _in_words(self, nodes: np.ndarray) -> str:
        devices = np.isin(self._fleet.node, nodes)
        free = self._fleet.free_bytes[devices]
        known = free[free < UNKNOWN_MEMORY]
        room = f", {format_bytes(int(known.sum()))} free" if len(known) else ""
        return f"{counted(len(nodes), 'node')}, {counted(int(devices.sum()), 'device')}{room}"
