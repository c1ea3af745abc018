"""Whose turn it is, and what is under way: a plan of m microbatches has m batches in flight."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from fjx.pipeline.batch import Batch
from fjx.pipeline.step_output import StepOutput
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler


class Turn(NamedTuple):
    """One part of a replica's requests, which one of the plan's microbatches serves."""

    scheduler: Scheduler
    """The replica's."""
    part: int
    parts: int
    """Microbatches of the plan."""

    @property
    def running(self) -> list[Request]:
        """Its requests."""
        return self.scheduler.running_in(self.part, self.parts)

    @property
    def share(self) -> int:
        """Running requests of a part, where all parts have as many."""
        return -(-len(self.scheduler.running) // self.parts)

    @property
    def busy_parts(self) -> int:
        """Parts that have running requests."""
        return len({request.slot % self.parts for request in self.scheduler.running})

    @property
    def has_rows(self) -> bool:
        """See `Scheduler.has_rows`."""
        return self.scheduler.has_rows(self.part, self.parts)

    def select(self) -> list[ScheduledRows]:
        """See `Scheduler.select`."""
        return self.scheduler.select(self.part, self.parts)


@dataclass(frozen=True)
class Microbatch:
    """A replica's rows of a step, and what they will bring."""

    scheduled: list[ScheduledRows]
    batch: Batch
    output: StepOutput
    sent: float
    """When the step was begun, in seconds of the engine's clock."""
    turn: Turn
    """Whose rows they are."""

    def written_pages(self) -> list[int]:
        """Pages whose contents it changes."""
        size = self.turn.scheduler.pool.page_size
        return [
            page
            for request, start, count, *_ in self.scheduled
            for page in request.pages[start // size : (start + count - 1) // size + 1]
        ]


class InFlight:
    """The steps that were sent and not read yet; each is of one turn of every replica that had
    anything to do, and they are read in the order in which they were sent."""

    def __init__(self) -> None:
        self._steps: deque[list[Microbatch]] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: list[Microbatch]) -> None:
        """A step was sent."""
        self._steps.append(step)

    def pop(self) -> list[Microbatch]:
        """Take out the oldest step, which the caller collects."""
        return self._steps.popleft()

    def max_steps(self, turns: Collection[Turn] = ()) -> int:
        """The greatest number of steps that any of these parts has in flight; of all parts, if none
        is given."""
        in_flight = Counter(each.turn for step in self._steps for each in step)
        return max((in_flight[turn] for turn in turns or in_flight), default=0)


class TokenGaps:
    """Times between the tokens of a request: from one step of its part to the next."""

    def __init__(self) -> None:
        self._read: dict[Turn, float] = {}

    def read(self, turn: Turn, now: float) -> float | None:
        """Note that a step of this part has brought its tokens now.

        Returns:
            Seconds since the part's step before; None for its first one, and for the first one
            after all of its requests had ended.
        """
        before = self._read.pop(turn, None)
        if turn.running:
            self._read[turn] = now
        return None if before is None else now - before

    def clear(self) -> None:
        """Forget all steps: a new plan has other parts."""
        self._read.clear()
