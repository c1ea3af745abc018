"""Which granules go to which stage: dynamic programming over the granules' costs.

FlexPipe (arXiv:2510.11938, equation 2) also cuts by dynamic programming, with a weighted sum of
time, loading and structure. Here the order is strict: first the slowest stage, which is the
pipeline's throughput, then the bytes that the change from the current plan moves.

Every stage holds at least one granule, so stage s of S begins at granule s at the earliest and at
granule s + G - S at the latest: W = G - S + 1 places to begin, as many to end, O(S W^2) steps, done
by NumPy in O(S) calls. Times are counted in whole picoseconds, so that equal stages are equal
whatever the order of the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fjx.errors import MeshError
from fjx.sharding.costs.difference import missing_shares
from fjx.sharding.costs.figures import Place, Workload, memory_error
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.plan.plan import Device, Plan, Stage, check_degree
from fjx.wording import counted

Integers = npt.NDArray[np.int64]

_NEVER = 1 << 61
"""The cost of what cannot be; twice it is still an int64."""


def partition(
    graph: GranuleGraph,
    places: Sequence[Place],
    workload: Workload,
    *,
    current: Plan | None = None,
    tolerance: float = 0.0,
    microbatches: int = 1,
    shared_devices: bool = False,
) -> Plan:
    """Find the plan with one stage in each place, in this order.

    Args:
        graph: The costs of the model's pieces.
        places: Where the stages run; each gets at least one granule.
        workload: The step that shall be fast, and the KV memory that must fit.
        current: The plan that serves now; among equally fast plans, the one that moves the
            fewest bytes from it wins.
        tolerance: How much slower than the fastest a plan may be in order to move less: 0.05 is
            5 % more for the slowest stage.
        microbatches: Of the plan.
        shared_devices: Of the plan.

    Returns:
        The best plan. Where several are best, the most even one, as far as it shows in sixteenths
        of the slowest stage.

    Raises:
        MemoryFitError: no plan fits into the places' memory.
        MeshError: there are more places than granules, or a tensor degree does not suit the model.
    """
    if not 1 <= len(places) <= len(graph.granules):
        raise MeshError(
            f"{graph.model} has {counted(len(graph.granules), 'granule')} and cannot have "
            f"{counted(len(places), 'stage')}; use 1 to {len(graph.granules)} stages, or smaller "
            "granules"
        )
    split_sizes = dict(graph.split_sizes)
    for number, place in enumerate(places, start=1):
        check_degree(place.mesh.tensor, split_sizes, f"stage {number}: ")
    times = _stage_times(graph, places, workload)
    fastest = int(_least(times, np.maximum)[-1][-1])
    if fastest >= _NEVER:
        raise memory_error(graph, places, workload)
    limit = int(fastest * (1 + tolerance))
    # Both in one number: any byte outweighs the evenness of all stages, which is the sum of the
    # squares of their times. It leaves room for 2 ** 45 bytes with 64 stages.
    shift = 8 + len(places).bit_length()
    weights = []
    for time, moved in zip(times, _stage_moves(graph, places, workload, current), strict=True):
        level = (np.minimum(time, fastest) * (16 / max(fastest, 1))).astype(np.int64)
        weights.append(np.where(time <= limit, (moved << shift) + level * level, _NEVER))
    ranges = _trace(weights, _least(weights, np.add))
    stages = (Stage(run, place.mesh) for run, place in zip(ranges, places, strict=True))
    return Plan(tuple(stages), microbatches, shared_devices)


def _stage_times(
    graph: GranuleGraph, places: Sequence[Place], workload: Workload
) -> list[Integers]:
    """For each stage s, picoseconds with granules s + i to s + j, [W, W].

    Never, where there are none or they do not fit.
    """
    bucket, W = graph.bucket_of(workload.rows), len(graph.granules) - len(places) + 1
    pieces = [piece for _, piece in graph.pieces()]
    handed_on = np.array([piece.activation_bytes[bucket] for piece in pieces], np.int64)
    taken = np.append(0, handed_on[1:-1])  # the first stage gets tokens
    given = np.append(handed_on[:-2], handed_on[-1])  # the last stage gives logits
    of_degree = {}
    for degree in {place.mesh.tensor for place in places}:
        held = [p.parameter_bytes(degree) + p.kv_bytes(workload.kv_tokens, degree) for p in pieces]
        begin, end = _ends(np.array(held, np.int64))
        seconds = np.array([piece.seconds_at(bucket, degree) for piece in pieces])
        of_degree[degree] = seconds, begin + taken, end + given
    empty = np.tri(W, k=-1, dtype=np.bool_)
    times = []
    for s, place in enumerate(places):
        seconds, begin_memory, end_memory = of_degree[place.mesh.tensor]
        begin, end = _ends(_picoseconds(seconds / place.speed))
        received = place.link.latency_seconds + taken[1:] / place.link.bytes_per_second
        begin[1:] += _picoseconds(received)
        begins, ends = slice(s, s + W), slice(s + 1, s + 1 + W)
        memory = begin_memory[begins, None] + end_memory[ends]
        impossible = empty | (memory > place.free_bytes)
        times.append(np.where(impossible, _NEVER, begin[begins, None] + end[ends]))
    return times


def _stage_moves(
    graph: GranuleGraph, places: Sequence[Place], workload: Workload, current: Plan | None
) -> list[Integers]:
    """For each stage s, bytes that granules s + i to s + j get from elsewhere, [W, W].

    Embed and head are left out: they go to the end stages in every plan.
    """
    G, tokens = len(graph.granules), workload.copied_tokens
    W = G - len(places) + 1
    if current is None:
        return [np.zeros((W, W), np.int64)] * len(places)
    current.check_model(G, dict(graph.split_sizes))
    whole = np.array([piece.whole_parameter_bytes for piece in graph.granules], np.int64)
    split = np.array(
        [p.split_parameter_bytes + p.kv_bytes_per_token * tokens for p in graph.granules], np.int64
    )
    stages_on: dict[Device, list[int]] = {}
    for index, stage in enumerate(current.stages):
        for device in stage.mesh.devices:
            stages_on.setdefault(device, []).append(index)
    moved = np.zeros((len(places), G + 1), np.int64)
    for row, place in zip(moved[:, 1:], places, strict=True):
        row[:] = len(place.mesh.devices) * whole + split
        # Of a stage that is on some of the same devices, less is missing.
        for index in {s for device in place.mesh.devices for s in stages_on.get(device, ())}:
            stage = current.stages[index]
            missing = missing_shares(stage.mesh, place.mesh)
            run = slice(stage.granules.start, stage.granules.stop)
            parts = split[run] * sum(missing.split) // missing.denominator
            row[run] = sum(missing.whole) * whole[run] + parts
    before = moved.cumsum(axis=1)
    return [row[s + 1 : s + 1 + W] - row[s : s + W, None] for s, row in enumerate(before)]


def _ends(costs: Integers) -> tuple[Integers, Integers]:
    """Of a piece's costs [G + 2], what the two ends of a stage contribute to its sum.

    The sum over granules i to j - 1, with embed where i is 0 and head where j is G, is the i-th of
    the first array plus the j-th of the second.
    """
    before = np.append(0, costs[1:-1].cumsum())
    begin, end = -before, before.copy()
    begin[0] += costs[0]
    end[-1] += costs[-1]
    return begin, end


def _picoseconds(seconds: Any) -> Integers:
    picoseconds: Integers = np.rint(seconds * 1e12).astype(np.int64)
    return picoseconds


def _least(costs: Sequence[Integers], combine: np.ufunc) -> list[Integers]:
    """The least cost of the first s stages holding the first s + i granules, [W] for s from 0 to
    S."""
    nothing = np.full(len(costs[0]), _NEVER)
    nothing[0] = 0
    best = [nothing]
    for stage in costs:
        best.append(np.minimum(combine(best[-1][:, None], stage).min(axis=0), _NEVER))
    return best


def _trace(costs: Sequence[Integers], best: Sequence[Integers]) -> list[range]:
    """The granules of each stage in the least sum."""
    end, ranges = len(costs[0]) - 1, []
    for s in reversed(range(len(costs))):
        sums = best[s] + costs[s][:, end]
        begin = len(sums) - 1 - int(sums[::-1].argmin())
        ranges.append(range(s + begin, s + end + 1))
        end = begin
    return ranges[::-1]
