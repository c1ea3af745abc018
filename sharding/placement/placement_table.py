"""Placements as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from fjx.sharding.costs.table import aligned, granules_text, short_devices
from fjx.sharding.placement.device_scorers import Demand, stranded_bytes
from fjx.sharding.placement.placement import Placement
from fjx.sharding.topology.fleet import Fleet
from fjx.sharding.topology.topology import UNKNOWN_MEMORY
from fjx.wording import counted, format_bytes, format_seconds

_HEADINGS = (
    *("stage", "node", "devices", "granules"),
    *("needs", "left", "stranded", "cold", "compute", "to the next"),
)


def placement_table(
    fleet: Fleet, placements: Sequence[Placement], demands: Sequence[Demand]
) -> str:
    """A table for each placement: a line for each stage, then what they add up to.

    Args:
        fleet: What was free before the first of them.
        placements: In the order in which they were made.
        demands: What memory must be of use for; see `stranded_bytes`. Bytes are those of each
            device, cold ones those of the stage.
    """
    parts = []
    for number, placement in enumerate(placements, start=1):
        after = placement.occupy(fleet)
        title = f"{placement.need.model}, {counted(len(placement.stages), 'stage')}"
        if len(placements) > 1:
            title = f"{number} of {len(placements)}: {title}"
        rows = [_HEADINGS, *_rows(after, placement, demands)]
        summary = placement_summary(fleet, placement, demands)
        parts.append("\n".join([title, *aligned(rows), *summary]))
        fleet = after
    return "\n\n".join(parts)


def placement_summary(
    fleet: Fleet, placement: Placement, demands: Sequence[Demand]
) -> tuple[str, str]:
    """What a placement comes to: its time, and its memory."""
    times = [stage.seconds for stage in placement.stages]
    slowest = times.index(max(times))
    before, after = (
        format_bytes(float(stranded_bytes(each.free_bytes, demands).sum()))
        for each in (fleet, placement.occupy(fleet))
    )
    quality = "no placement is better" if placement.proven else "the best that was found"
    return (
        f"slowest stage {slowest + 1}, {format_seconds(times[slowest])}; "
        f"{format_seconds(placement.transfer_seconds)} between stages; {quality}",
        f"{format_bytes(placement.cold_bytes)} to load cold; stranded memory {before} before, "
        f"{after} after",
    )


def way_between(fleet: Fleet, placement: Placement, first: int, second: int) -> str:
    """How far apart two stages are, by their numbers: same node, same rack, other rack."""
    here, there = (int(fleet.node[placement.indices[number][0]]) for number in (first, second))
    if here == there:
        return "same node"
    return "same rack" if fleet.rack[here] == fleet.rack[there] else "other rack"


def _rows(after: Fleet, placement: Placement, demands: Sequence[Demand]) -> list[tuple[str, ...]]:
    stranded = stranded_bytes(after.free_bytes, demands)
    rows: list[tuple[str, ...]] = []
    for number, (need, stage, indices) in enumerate(
        zip(placement.need.stages, placement.stages, placement.indices, strict=True)
    ):
        left = int(after.free_bytes[list(indices)].min())
        last = number + 1 == len(placement.stages)
        rows.append(
            (
                str(number + 1),
                stage.mesh.devices[0].host,
                short_devices(stage.mesh.devices).rpartition("/")[2],
                granules_text(placement.plan, number),
                format_bytes(need.needed_bytes),
                "?" if left >= UNKNOWN_MEMORY else format_bytes(left),
                format_bytes(float(stranded[list(indices)].max())),
                format_bytes(stage.cold_bytes),
                format_seconds(stage.compute_seconds),
                "" if last else _next_hop(after, placement, number),
            )
        )
    return rows


def _next_hop(fleet: Fleet, placement: Placement, number: int) -> str:
    """How far the next stage is, and how long a microbatch takes there."""
    way = way_between(fleet, placement, number, number + 1)
    return f"{way}, {format_seconds(placement.stages[number + 1].transfer_seconds)}"
