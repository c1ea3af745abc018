"""When each stage works on which microbatch, as the costs predict it.

A *round* is one step of each microbatch. A stage takes them in order: it starts one when it is
free and the stage before has finished it; the first stage starts a microbatch of the next round
when its tokens have left the last stage. Receiving the input occupies the stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fjx.sharding.costs.figures import StageFigures

_SETTLED = 8
"""Rounds after which the beginning no longer shows."""


@dataclass(frozen=True)
class Slot:
    """One stage's work on one microbatch. Times are seconds from the start."""

    stage: int
    round: int
    microbatch: int
    begin: float
    received: float
    """When the input is there."""
    end: float


def schedule(stages: Sequence[StageFigures], microbatches: int, rounds: int) -> tuple[Slot, ...]:
    """The first rounds of a pipeline that was empty, in the order of time for each stage."""
    free = [0.0] * len(stages)
    sampled = [0.0] * microbatches
    slots = []
    for number in range(rounds):
        for microbatch in range(microbatches):
            ready = sampled[microbatch]
            for index, stage in enumerate(stages):
                begin = max(ready, free[index])
                received = begin + stage.transfer_seconds
                ready = free[index] = received + stage.compute_seconds
                slots.append(Slot(index, number, microbatch, begin, received, ready))
            sampled[microbatch] = ready
    return tuple(slots)


def round_seconds(stages: Sequence[StageFigures], microbatches: int) -> float:
    """Time from round to round once the pipeline is full."""
    slots = schedule(stages, microbatches, 2 * _SETTLED)
    ends = [slot.end for slot in slots if slot.stage == len(stages) - 1]
    last = ends[-1]
    return (last - ends[-1 - _SETTLED * microbatches]) / _SETTLED


def idle_share(stages: Sequence[StageFigures], microbatches: int) -> float:
    """The part of all stages' time in a full pipeline that nobody works: the bubbles, 0 to 1."""
    whole = round_seconds(stages, microbatches) * len(stages)
    busy = microbatches * sum(stage.seconds for stage in stages)
    return max(0.0, 1 - busy / whole) if whole else 0.0
