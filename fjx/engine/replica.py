"""One pipeline with its requests: their pages, their batches and the steps in flight."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fjx.cache.page_pool import PagePool
from fjx.engine.batch_builder import BatchBuilder
from fjx.engine.draft_ahead import DraftAhead
from fjx.engine.pruning import Pruning
from fjx.engine.scheduler import ScheduledRows, Scheduler
from fjx.pipeline.batch import Batch
from fjx.pipeline.executor import Executor, Pipeline, StepOutput


@dataclass(frozen=True)
class Microbatch:
    """Some rows of a step, and what they will bring."""

    scheduled: list[ScheduledRows]
    batch: Batch
    output: StepOutput
    sent: float
    """When the step was begun, in seconds of ``time.perf_counter``."""


class Built(NamedTuple):
    """A microbatch that can be sent."""

    scheduled: list[ScheduledRows]
    batch: Batch
    part: int
    """Which of the plan's microbatches it is."""


class Replica:
    """Schedules and sends the steps of the requests that were given to it."""

    def __init__(
        self, executor: Pipeline, share_prefixes: bool, end_tokens: tuple[int, ...]
    ) -> None:
        limits = executor.limits
        self.executor = executor
        self.scheduler = Scheduler(
            PagePool(limits.num_pages, limits.page_size, share_prefixes),
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            limits.max_draft_rows,
        )
        self._builder = BatchBuilder(limits, end_tokens)
        self._in_flight: list[Microbatch] = []

    @property
    def local(self) -> Executor:
        """The executor, where its stages are in this process: what looks into steps, or sends
        several at once, needs that."""
        assert isinstance(self.executor, Executor)
        return self.executor

    @property
    def load(self) -> int:
        """Unfinished requests."""
        return len(self.scheduler.running) + self.scheduler.num_waiting

    def build(self) -> Iterator[Built]:
        """The next step's microbatches, which are taken to be sent, in order."""
        for part, rows in enumerate(self._parts(self.scheduler.schedule())):
            if rows:
                yield Built(rows, self._builder.build(rows, part), part)

    def dispatch(
        self, pruning: Pruning | None = None, ahead: DraftAhead | None = None
    ) -> list[ScheduledRows]:
        """Send the next step to the devices; ``pruning`` may take rows out of it, ``ahead`` may let
        it draft on meanwhile."""
        if self.executor.lost:
            return []
        begun = time.perf_counter()
        sent: list[ScheduledRows] = []
        for rows, batch, part in self.build():
            sent += rows
            step = beside = None
            if pruning is not None:
                step = pruning.begin(self.local, self._builder, rows, batch)
            if ahead is not None and step is None:
                beside = ahead.begin(self.local, rows, batch)
            output = self.executor.dispatch(batch, part, step, beside)
            if ahead is not None and beside is not None:
                ahead.sent()
            if step is not None:
                rows, batch = step.scheduled, step.batch
            self._in_flight.append(Microbatch(rows, batch, output, begun))
        return sent

    def take_in_flight(self) -> list[Microbatch]:
        """The microbatches that were sent and not taken yet; the caller reads them."""
        taken, self._in_flight = self._in_flight, []
        return taken

    def _parts(self, scheduled: list[ScheduledRows]) -> list[list[ScheduledRows]]:
        """A slot is always in the same part: what it samples stays with that part on the device."""
        count = self.executor.plan.microbatches
        if count == 1:
            return [scheduled]
        parts: list[list[ScheduledRows]] = [[] for _ in range(count)]
        for rows in scheduled:
            parts[rows.request.slot % count].append(rows)
        return parts
