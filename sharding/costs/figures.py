"""What a stage costs in a place: seconds and bytes. One definition, for planning and for pictures.

A stage's time is its pieces' seconds on its devices plus the time to receive its input. Its memory,
on each device, is its share of parameters and KV pages, its input and its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fjx.errors import MemoryFitError
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.plan.plan import Mesh, Plan
from fjx.sharding.topology.topology import INSTANT, UNKNOWN_MEMORY, Link
from fjx.wording import format_bytes, listed


@dataclass(frozen=True)
class Place:
    """Where a stage can run."""

    mesh: Mesh
    free_bytes: int = UNKNOWN_MEMORY
    """Memory that a stage may use on each device of the mesh."""
    speed: float = 1.0
    """Speed of the slowest device, relative to the device of the profile."""
    link: Link = INSTANT
    """The link over which the stage gets its input."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a plan must be good for."""

    rows: int
    """Rows of a microbatch; costs are those of the bucket that holds them."""
    kv_tokens: int = 0
    """Token slots of KV memory that must fit beside the parameters."""
    copied_tokens: int = 0
    """Token slots in use, which a change of the plan has to copy."""


@dataclass(frozen=True)
class StageFigures:
    """The costs of one stage. Bytes are those of each device."""

    compute_seconds: float
    """One pass of a microbatch."""
    transfer_seconds: float
    """Receiving the input of that pass."""
    parameter_bytes: int
    kv_bytes: int
    activation_bytes: int
    """Input and output."""
    free_bytes: int
    """What the device has to give."""

    @property
    def seconds(self) -> float:
        """How long a microbatch occupies the stage."""
        return self.compute_seconds + self.transfer_seconds

    @property
    def needed_bytes(self) -> int:
        """What the stage takes of the device's memory."""
        return self.parameter_bytes + self.kv_bytes + self.activation_bytes


def stage_figures(
    graph: GranuleGraph, granules: range, place: Place, workload: Workload
) -> StageFigures:
    """The costs of a run of granules in a place, with embed or head where it is an end."""
    bucket, degree = graph.bucket_of(workload.rows), place.mesh.tensor
    pieces = [piece for _, piece in graph.stage_pieces(granules)]
    taken = graph.granules[granules.start - 1].activation_bytes[bucket] if granules.start else 0
    return StageFigures(
        compute_seconds=sum(p.seconds_at(bucket, degree) for p in pieces) / place.speed,
        transfer_seconds=place.link.transfer_seconds(taken) if granules.start else 0.0,
        parameter_bytes=sum(piece.parameter_bytes(degree) for piece in pieces),
        kv_bytes=sum(piece.kv_bytes(workload.kv_tokens, degree) for piece in pieces),
        activation_bytes=taken + pieces[-1].activation_bytes[bucket],
        free_bytes=place.free_bytes,
    )


def plan_figures(
    graph: GranuleGraph, plan: Plan, places: Sequence[Place], workload: Workload
) -> tuple[StageFigures, ...]:
    """The costs of each stage of a plan, whose meshes are those of ``places``."""
    return tuple(
        stage_figures(graph, stage.granules, place, workload)
        for stage, place in zip(plan.stages, places, strict=True)
    )


def memory_error(
    graph: GranuleGraph, places: Sequence[Place], workload: Workload
) -> MemoryFitError:
    """The error for a model that fits no way into these places, with the numbers."""
    pieces = [piece for _, piece in graph.pieces()]
    parameters = sum(piece.parameter_bytes() for piece in pieces)
    kv = sum(piece.kv_bytes(workload.kv_tokens) for piece in pieces)
    largest = max(piece.parameter_bytes() + piece.kv_bytes(workload.kv_tokens) for piece in pieces)
    free = [
        f"{len(place.mesh.devices)} x {format_bytes(place.free_bytes)}"
        if place.free_bytes < UNKNOWN_MEMORY
        else "any"
        for place in places
    ]
    return MemoryFitError(
        f"{graph.model} does not fit: it needs {format_bytes(parameters + kv)} "
        f"({format_bytes(parameters)} of parameters, {format_bytes(kv)} of KV pages for "
        f"{workload.kv_tokens} tokens; its largest piece {format_bytes(largest)}), and "
        f"{listed(free)} are free on its stages' devices; use more stages or devices, fewer KV "
        "tokens, or smaller granules"
    )


def check_memory(
    graph: GranuleGraph, plan: Plan, places: Sequence[Place], workload: Workload
) -> None:
    """Check that each stage of a plan fits into its place.

    Raises:
        MemoryFitError: one does not; the message has its numbers.
    """
    figures = plan_figures(graph, plan, places, workload)
    for number, stage in enumerate(figures, start=1):
        if stage.needed_bytes > stage.free_bytes:
            raise MemoryFitError(
                f"stage {number} needs {format_bytes(stage.needed_bytes)} on each device "
                f"({format_bytes(stage.parameter_bytes)} of parameters, "
                f"{format_bytes(stage.kv_bytes)} of KV pages for {workload.kv_tokens} tokens, "
                f"{format_bytes(stage.activation_bytes)} of activations), "
                f"{format_bytes(stage.free_bytes)} are free; give the stage fewer layers or more "
                "devices, or use fewer KV tokens"
            )
