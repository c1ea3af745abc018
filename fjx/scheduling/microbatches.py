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


class MicrobatchGroup(NamedTuple):
    """The requests of a replica that one of the plan's microbatches serves."""

    scheduler: Scheduler
    """The replica's."""
    group_id: int
    num_groups: int
    """Microbatches of the plan."""

    @property
    def running(self) -> list[Request]:
        """Its requests."""
        return self.scheduler.running_in(self.group_id, self.num_groups)

    @property
    def share(self) -> int:
        """Running requests of a group, where all groups have as many."""
        return -(-len(self.scheduler.running) // self.num_groups)

    @property
    def busy_groups(self) -> int:
        """Groups that have running requests."""
        return len({request.slot % self.num_groups for request in self.scheduler.running})

    @property
    def has_rows(self) -> bool:
        """See `Scheduler.has_rows`."""
        return self.scheduler.has_rows(self.group_id, self.num_groups)

    def select(self) -> list[ScheduledRows]:
        """See `Scheduler.select`."""
        return self.scheduler.select(self.group_id, self.num_groups)


@dataclass(frozen=True)
class Microbatch:
    """A replica's rows of a step, and what they will bring."""

    scheduled: list[ScheduledRows]
    batch: Batch
    output: StepOutput
    sent: float
    """When the step was begun, in seconds of the engine's clock."""
    group: MicrobatchGroup
    """Whose rows they are."""

    def written_pages(self) -> list[int]:
        """Pages whose contents it changes."""
        size = self.group.scheduler.pool.page_size
        return [
            page
            for request, start, count, *_ in self.scheduled
            for page in request.pages[start // size : (start + count - 1) // size + 1]
        ]


class StepsInFlight:
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

    def max_steps(self, groups: Collection[MicrobatchGroup] = ()) -> int:
        """The greatest number of steps that any of these groups has in flight; of all groups, if
        none is given."""
        in_flight = Counter(each.group for step in self._steps for each in step)
        return max((in_flight[group] for group in groups or in_flight), default=0)


class TokenGaps:
    """Times between the tokens of a request: from one step of its group to the next."""

    def __init__(self) -> None:
        self._read: dict[MicrobatchGroup, float] = {}

    def read(self, group: MicrobatchGroup, now: float) -> float | None:
        """Note that a step of this group has brought its tokens now.

        Returns:
            Seconds since the group's step before; None for its first one, and for the first one
            after all of its requests had ended.
        """
        before = self._read.pop(group, None)
        if group.running:
            self._read[group] = now
        return None if before is None else now - before

    def clear(self) -> None:
        """Forget all steps: a new plan has other groups."""
        self._read.clear()
