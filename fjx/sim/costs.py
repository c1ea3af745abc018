"""What a step costs on each stage, as arrays that the inner loop reads.

A microbatch of ``rows`` rows, whose requests have ``context`` tokens in all and whose rows attend
to ``pairs`` tokens in all, and of whose rows ``samples`` choose a token, occupies stage s for

    max(compute[s, rows] + sample_seconds[s] samples + pair_seconds[s] pairs,
        read[s, rows] + context_seconds[s] context) + fixed[s, rows]

seconds: the roofline (Williams et al. 2009) of a ragged batch. Prefill, decoding and verification
differ only in these four numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fjx.sharding.costs.analytic import DeviceFigures, ModelSizes
from fjx.sharding.costs.graph import GranuleGraph, PieceCost
from fjx.sharding.plan.plan import Plan
from fjx.sharding.planner.assign import places_of
from fjx.sharding.topology.topology import Topology

Floats = NDArray[np.float64]

_RESIDUAL_BYTES = 4
"""Of an entry of the residual stream, which goes from stage to stage."""


@dataclass(frozen=True)
class StageCosts:
    """Seconds of a plan's stages, see the module's text."""

    compute: Floats
    """By stage and rows, [S, most rows + 1]."""
    read: Floats
    fixed: Floats
    """What neither arithmetic nor memory explains: launches, receiving the input, the host."""
    sample_seconds: Floats
    """By stage, [S]."""
    pair_seconds: Floats
    context_seconds: Floats

    @property
    def stages(self) -> int:
        """S."""
        return len(self.pair_seconds)

    def slower(self, factor: float) -> StageCosts:
        """The same stages at so many times the seconds."""
        return StageCosts(
            compute=factor * self.compute,
            read=factor * self.read,
            fixed=factor * self.fixed,
            sample_seconds=factor * self.sample_seconds,
            pair_seconds=factor * self.pair_seconds,
            context_seconds=factor * self.context_seconds,
        )

    def shared(self, compute: float, memory: float) -> StageCosts:
        """The same stages with these shares of their devices' arithmetic and bandwidth."""
        return replace(
            self,
            compute=self.compute / compute,
            sample_seconds=self.sample_seconds / compute,
            pair_seconds=self.pair_seconds / compute,
            read=self.read / memory,
            context_seconds=self.context_seconds / memory,
        )

    def alone_seconds(self, rows: int, samples: int, pairs: float, context: float) -> float:
        """From the first stage to the last for one microbatch and nothing else."""
        chosen = samples * self.sample_seconds + pairs * self.pair_seconds
        busy = np.maximum(
            self.compute[:, rows] + chosen,
            self.read[:, rows] + context * self.context_seconds,
        )
        return float((busy + self.fixed[:, rows]).sum())


def roofline_costs(
    sizes: ModelSizes,
    graph: GranuleGraph,
    plan: Plan,
    topology: Topology,
    device: DeviceFigures,
    max_rows: int,
) -> StageCosts:
    """A plan's costs on devices that are known by their figures.

    Args:
        sizes: Of the model.
        graph: Of the same model; its bytes count, its seconds do not.
        plan: The stages.
        topology: Links, and how fast the devices are relative to ``device``.
        device: Figures of a device of speed 1.
        max_rows: Largest microbatch.
    """
    rows = np.arange(max_rows + 1, dtype=np.float64)
    shape = len(plan.stages), max_rows + 1
    compute, read, fixed = (np.zeros(shape) for _ in range(3))
    sample, pair, context = (np.zeros(len(plan.stages)) for _ in range(3))
    places = places_of(plan, topology)
    residual = sizes.hidden_size * _RESIDUAL_BYTES
    for s, (stage, place) in enumerate(zip(plan.stages, places, strict=True)):
        degree = place.mesh.tensor
        flops, memory = (
            degree * place.speed * each
            for each in (device.flops_per_second, device.memory_bytes_per_second)
        )
        pieces = [graph.granules[i] for i in stage.granules]
        layers = sum(piece.layers for piece in pieces)
        passes = len(pieces)
        entries = layers * sizes.layer_entries
        compute[s] = rows * (2 * entries / flops)
        if stage.granules.stop == len(graph.granules):
            head = sizes.vocab_size * sizes.hidden_size
            sample[s] = 2 * head / flops
            entries += head
            passes += 1
        read[s] = entries * sizes.parameter_bytes / memory
        sums = 2 * layers * (degree > 1)
        sent = 2 * (degree - 1) / degree * residual / device.reduce_bytes_per_second
        fixed[s] = passes * device.pass_seconds + sums * (device.reduce_seconds + rows * sent)
        if s:
            link = place.link
            fixed[s] += link.latency_seconds + rows * (residual / link.bytes_per_second)
        pair[s] = layers * 4 * sizes.num_heads * sizes.head_dim / flops
        context[s] = sum(piece.kv_bytes_per_token for piece in pieces) / memory
    return StageCosts(compute, read, fixed, sample, pair, context)


def profile_costs(
    graph: GranuleGraph,
    plan: Plan,
    topology: Topology,
    max_rows: int,
    *,
    pair_seconds: float = 0.0,
    step_seconds: float = 0.0,
) -> StageCosts:
    """A plan's costs by a measured profile, which `fjx.sharding.costs.profile.read_profile` reads.

    Steps are padded to the profile's buckets; beyond the largest one they cost in proportion.

    Args:
        graph: The profile.
        plan: The stages.
        topology: Links and speeds.
        max_rows: Largest microbatch.
        pair_seconds: Of a row's attention to one token more or less than in the profile, in the
            whole model: what a profile of one context does not tell.
        step_seconds: Of each step besides, on the first stage: the host's.
    """
    places = places_of(plan, topology)
    shape = len(plan.stages), max_rows + 1
    compute, fixed = np.zeros(shape), np.zeros(shape)
    pair = np.zeros(len(plan.stages))
    for s, (stage, place) in enumerate(zip(plan.stages, places, strict=True)):
        pieces = [piece for _, piece in graph.stage_pieces(stage.granules)]
        compute[s, 1:] = [
            sum(_padded(graph, piece, rows, place.mesh.tensor) for piece in pieces) / place.speed
            for rows in range(1, max_rows + 1)
        ]
        if s:
            taken = graph.granules[stage.granules.start - 1].activation_bytes
            sizes = [_at(graph.buckets, taken, rows) for rows in range(1, max_rows + 1)]
            fixed[s, 1:] = [place.link.transfer_seconds(round(size)) for size in sizes]
        layers = sum(piece.layers for piece in pieces)
        pair[s] = pair_seconds * layers / graph.num_layers
    fixed[0, 1:] += step_seconds
    none = np.zeros(len(plan.stages))
    return StageCosts(compute, np.zeros(shape), fixed, none, pair, none)


def table_costs(
    seconds: Sequence[float], *, sample_seconds: float = 0.0, pair_seconds: float = 0.0
) -> StageCosts:
    """One stage, whose steps take ``seconds[rows]`` and what their samples and pairs add; a step of
    no rows is never made."""
    table = np.array([seconds], np.float64)
    nothing, none = np.zeros_like(table), np.zeros(1)
    sample, pair = np.array([sample_seconds]), np.array([pair_seconds])
    return StageCosts(table, nothing, nothing, sample, pair, none)


def _padded(graph: GranuleGraph, piece: PieceCost, rows: int, degree: int) -> float:
    seconds = [piece.seconds_at(i, degree) for i in range(len(graph.buckets))]
    return _at(graph.buckets, seconds, rows)


def _at(buckets: Sequence[int], values: Sequence[float], rows: int) -> float:
    """The value of the smallest bucket that holds the rows."""
    index = bisect_left(buckets, rows)
    if index == len(buckets):
        return values[-1] * rows / buckets[-1]
    return values[index]
