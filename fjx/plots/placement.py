"""Placements as a picture: the stages, then the racks, nodes and devices that they take.

Nodes and racks without a stage are counted in words, so that a picture of thousands of devices
shows what matters.
"""

from __future__ import annotations

from collections.abc import Sequence

from fjx.plots.chart import MARGIN, WIDTH, heading, legend, paragraphs
from fjx.plots.palette import INK, PAPER
from fjx.plots.racks import RackDrawing
from fjx.plots.stages import StageRow, draw_stages, memory_entries
from fjx.plots.svg import Canvas
from fjx.sharding.costs.figures import StageFigures
from fjx.sharding.costs.table import granules_text, short_devices
from fjx.sharding.placement.device_scorers import Demand
from fjx.sharding.placement.placement import Placement
from fjx.sharding.placement.placement_table import placement_summary, way_between
from fjx.sharding.topology.fleet import Fleet
from fjx.wording import counted


def placement_svg(fleet: Fleet, placements: Sequence[Placement], demands: Sequence[Demand]) -> str:
    """Draw placements on one fleet, 900 pixels wide.

    Args:
        fleet: What was free before the first of them.
        placements: In the order in which they were made; at least one.
        demands: What memory must be of use for.

    Returns:
        An SVG document.
    """
    canvas, several = Canvas(WIDTH, PAPER), len(placements) > 1
    models = ", ".join(dict.fromkeys(placement.need.model for placement in placements))
    y = heading(canvas, models, end=f": {_size(fleet, placements)}")
    before = fleet
    for number, placement in enumerate(placements, start=1):
        if several:
            title = f"{number} of {len(placements)}: {placement.need.model}"
            canvas.text(MARGIN, y + 2, title, 16, INK, bold=True, room=WIDTH - 2 * MARGIN)
            y += 28
        y = paragraphs(canvas, y, placement_summary(before, placement, demands))
        y = draw_stages(canvas, y, _rows(before, placement), extra="link") + 24
        before = placement.occupy(before)
    canvas.text(MARGIN, y + 8, "Where the stages are", 16, INK, bold=True)
    notes = ["Sums, and the lengths of bars, are the memory that was free before."]
    if several:
        notes[0] += " 2: stage 3 is the third stage of the second placement."
    y = paragraphs(canvas, y + 34, notes)
    y = legend(canvas, memory_entries(), y + 2) + 8
    return canvas.to_svg(RackDrawing(canvas, fleet, placements).draw(y) + MARGIN)


def _size(fleet: Fleet, placements: Sequence[Placement]) -> str:
    """Such as ``2 stages on 2 of 8 devices``."""
    used = {device for each in placements for indices in each.indices for device in indices}
    stages = counted(sum(len(placement.stages) for placement in placements), "stage")
    where = f"{len(used)} of {counted(len(fleet.devices), 'device')}"
    return f"{stages} on {where}"


def _rows(fleet: Fleet, placement: Placement) -> list[StageRow]:
    """The stages, on the devices as they are before."""
    rows = []
    for number, (need, stage, indices) in enumerate(
        zip(placement.need.stages, placement.stages, placement.indices, strict=True)
    ):
        figures = StageFigures(
            compute_seconds=stage.compute_seconds,
            transfer_seconds=stage.transfer_seconds,
            parameter_bytes=need.parameter_bytes,
            kv_bytes=need.kv_bytes,
            activation_bytes=need.activation_bytes,
            free_bytes=int(fleet.free_bytes[list(indices)].min()),
        )
        way = way_between(fleet, placement, number - 1, number) if number else ""
        devices = short_devices(stage.mesh.devices)
        pieces = granules_text(placement.plan, number)
        rows.append(StageRow(f"{number + 1}", devices, pieces, way, figures))
    return rows
