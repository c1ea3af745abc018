"""One pipeline with its requests: their pages, their batches and the steps in flight."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fjx.cache.page_pool import PagePool
from fjx.engine.batch_builder import BatchBuilder
from fjx.engine.pruning import Pruning
from fjx.engine.scheduler import ScheduledRows, Scheduler
from fjx.pipeline.batch import Batch
from fjx.pipeline.executor import Executor, StepOutput


@dataclass(frozen=True)
class Microbatch:
    """Some rows of a step, and what they will bring."""

    scheduled: list[ScheduledRows]
    batch: Batch
    output: StepOutput
    sent: float
    """When the step was begun, in seconds of ``time.perf_counter``."""


class Replica:
    """Schedules and sends the steps of the requests that were given to it."""

    def __init__(
        self, executor: Executor, share_prefixes: bool, end_tokens: tuple[int, ...]
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
    def load(self) -> int:
        """Unfinished requests."""
        return len(self.scheduler.running) + self.scheduler.num_waiting

    def dispatch(self, pruning: Pruning | None = None) -> list[ScheduledRows]:
        """Send the next step to the devices; ``pruning`` may take rows out of it."""
        begun = time.perf_counter()
        scheduled = self.scheduler.schedule()
        for part, rows in enumerate(self._parts(scheduled)):
            if rows:
                batch = self._builder.build(rows, part)
                step = None
                if pruning is not None:
                    step = pruning.begin(self.executor, self._builder, rows, batch)
                output = self.executor.dispatch(batch, part, step)
                if step is not None:
                    rows, batch = step.scheduled, step.batch
                self._in_flight.append(Microbatch(rows, batch, output, begun))
        return scheduled

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
