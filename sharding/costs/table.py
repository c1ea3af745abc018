"""A plan as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from fjx.sharding.costs.difference import Difference
from fjx.sharding.costs.figures import Place, StageFigures, Workload, plan_figures
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.costs.timeline import idle_share, round_seconds
from fjx.sharding.plan.plan import Deployment, Device, Plan
from fjx.sharding.topology.topology import UNKNOWN_MEMORY
from fjx.wording import counted, format_bytes, format_seconds

_HEADINGS = (
    *("stage", "devices", "granules", "layers"),
    *("parameters", "KV pages", "activations", "free", "compute", "input"),
)
_STAGES_IN_LINE = 8
"""Stages whose devices are named in one line."""
_LEFT = 4
"""Columns that are aligned to the left."""


def plan_table(
    graph: GranuleGraph,
    deployment: Deployment,
    places: Sequence[Sequence[Place]],
    workload: Workload,
) -> str:
    """A table for each replica: a line for each stage, then what they add up to.

    Args:
        graph: The costs of the model's pieces.
        deployment: What to show.
        places: For each replica, the places of its stages.
        workload: What seconds and bytes are for; bytes are those of each device.
    """
    parts = []
    for number, (plan, where) in enumerate(zip(deployment.replicas, places, strict=True), start=1):
        figures = plan_figures(graph, plan, where, workload)
        rows: list[tuple[str, ...]] = [_HEADINGS]
        for index, stage in enumerate(plan.stages):
            rows.append(
                (
                    str(index + 1),
                    short_devices(stage.mesh.devices),
                    granules_text(plan, index),
                    span(graph.layers_of(stage.granules)),
                    *_costs(figures[index]),
                )
            )
        title = f"{graph.model}, {counted(plan.granularity, 'stage')}"
        if len(deployment.replicas) > 1:
            title = f"replica {number} of {len(deployment.replicas)}: {title}"
        parts.append("\n".join([title, *aligned(rows), summary(plan, figures, workload)]))
    return "\n\n".join(parts)


def difference_table(difference: Difference) -> str:
    """A line for each move, then the sums."""
    rows = [("move", "from", "to", "parameters", "KV pages")]
    for move in difference.moves:
        rows.append(
            (
                move.piece,
                short_devices(move.source.devices),
                short_devices(move.target.devices),
                format_bytes(move.parameter_bytes),
                format_bytes(move.kv_bytes),
            )
        )
    total = (
        f"{counted(len(difference.moves), 'move')}, {format_bytes(difference.total_bytes)}: "
        f"{format_bytes(difference.parameter_bytes)} of parameters, "
        f"{format_bytes(difference.kv_bytes)} of KV pages"
    )
    return "\n".join([*aligned(rows, left=3), total]) if difference.moves else "nothing moves"


def deployment_line(deployment: Deployment) -> str:
    """A deployment in one line: ``2 stages (cpu:0 -> cpu:1), 2 microbatches``."""
    plans = [_plan_line(plan) for plan in deployment.replicas]
    if len(plans) == 1:
        return plans[0]
    return f"{len(plans)} replicas: {'; '.join(plans)}"


def _plan_line(plan: Plan) -> str:
    devices = [short_devices(stage.mesh.devices) for stage in plan.stages]
    if len(devices) > _STAGES_IN_LINE:
        devices = [*devices[: _STAGES_IN_LINE - 1], "...", devices[-1]]
    line = f"{counted(plan.granularity, 'stage')} ({' -> '.join(devices)})"
    if plan.microbatches > 1:
        line += f", {plan.microbatches} microbatches"
    return line


def summary(plan: Plan, figures: Sequence[StageFigures], workload: Workload) -> str:
    """What a plan's stages add up to, in one line."""
    slowest = max(range(len(figures)), key=lambda index: figures[index].seconds)
    parts = counted(plan.microbatches, "microbatch", "microbatches")
    return (
        f"slowest stage {slowest + 1}, {format_seconds(figures[slowest].seconds)}; "
        f"{parts} of {workload.rows} rows every "
        f"{format_seconds(round_seconds(figures, plan.microbatches))}; "
        f"idle {idle_share(figures, plan.microbatches):.0%}"
    )


def granules_text(plan: Plan, stage: int, noun: str = "") -> str:
    """The pieces of a stage: ``embed, 0-3``, with ``noun`` before the numbers."""
    before = ["embed"] if stage == 0 else []
    after = ["head"] if stage == plan.granularity - 1 else []
    return ", ".join([*before, noun + span(plan.stages[stage].granules), *after])


def span(numbers: range) -> str:
    """First and last number: ``0-3``, or ``0`` where there is only one."""
    if not numbers:
        return "none"
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"


def short_devices(devices: Sequence[Device]) -> str:
    """Devices in few letters: ``gpu:0-3``, ``node-a/gpu:0,2``; ``localhost`` is left out."""
    parts = []
    for (host, platform), group in groupby(devices, key=lambda d: (d.host, d.platform)):
        indices = short_numbers([device.index for device in group])
        parts.append(f"{'' if host == 'localhost' else host + '/'}{platform}:{indices}")
    return " ".join(parts)


def short_numbers(numbers: Iterable[int]) -> str:
    """Whole numbers in few letters: ``0-2,5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def aligned(rows: Sequence[Sequence[str]], left: int = _LEFT) -> list[str]:
    """Rows as lines of columns, the first ``left`` columns aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _costs(figures: StageFigures) -> tuple[str, ...]:
    unknown = figures.free_bytes == UNKNOWN_MEMORY
    return (
        format_bytes(figures.parameter_bytes),
        format_bytes(figures.kv_bytes),
        format_bytes(figures.activation_bytes),
        "?" if unknown else format_bytes(figures.free_bytes),
        format_seconds(figures.compute_seconds),
        format_seconds(figures.transfer_seconds),
    )
