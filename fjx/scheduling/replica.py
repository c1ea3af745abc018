"""One pipeline with its requests: their pages, their batches, and which group's turn it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from fjx.pipeline.batch import Batch
from fjx.pipeline.chain import OverlappedChain
from fjx.pipeline.executor import Executor
from fjx.pipeline.protocol import Pipeline, Pruner
from fjx.scheduling.batch_builder import BatchBuilder
from fjx.scheduling.microbatches import Microbatch, MicrobatchGroup
from fjx.scheduling.page_pool import PagePool
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler


class StepPruner(Pruner, Protocol):
    """One step that is looked at while it is under way."""

    scheduled: list[ScheduledRows]
    """The rows that go on."""
    batch: Batch
    """Their step."""


class PrunesSteps(Protocol):
    """Takes rows out of steps under way."""

    def begin(
        self,
        executor: Executor,
        builder: BatchBuilder,
        scheduled: list[ScheduledRows],
        batch: Batch,
    ) -> StepPruner | None:
        """Called before a step is sent.

        Returns:
            What is called between its stages, and may take rows out; None: it runs as it is.
        """


class DraftsDuringSteps(Protocol):
    """Drafts on the devices that a step uses, while it is under way."""

    def begin(
        self, executor: Executor, scheduled: Sequence[ScheduledRows], batch: Batch
    ) -> OverlappedChain | None:
        """Called before a step is sent.

        Returns:
            The programs that draft beside it; None: nothing is drafted.
        """

    def sent(self) -> None:
        """The step was sent, with what is drafted beside it."""


class RequestsFailedError(Exception):
    """A step cannot be built because of some requests; without them it may."""

    def __init__(self, errors: Mapping[Request, Exception]) -> None:
        super().__init__("; ".join(f"{r.id}: {error!r}" for r, error in errors.items()))
        self.errors = errors


class BuiltMicrobatch(NamedTuple):
    """A microbatch that can be sent."""

    scheduled: list[ScheduledRows]
    batch: Batch
    group: MicrobatchGroup
    """Whose rows they are."""


class Replica:
    """Schedules and sends the steps of the requests that were given to it.

    A plan of several microbatches serves its groups in turn, one in each step; a group that has
    nothing to do is passed over.
    """

    def __init__(
        self,
        executor: Pipeline,
        share_prefixes: bool,
        end_tokens: tuple[int, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = executor.limits
        self.executor = executor
        self._clock = clock
        self.scheduler = Scheduler(
            PagePool(limits.num_pages, limits.page_size, share_prefixes),
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            limits.max_draft_rows,
        )
        vocabulary = executor.programs.model.config.vocab_size
        self._builder = BatchBuilder(limits, end_tokens, vocabulary)
        self._next = 0

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

    @property
    def group(self) -> MicrobatchGroup | None:
        """The group whose step is next; None: no group has anything to do."""
        return next((group for group in self._groups() if group.has_rows), None)

    def build(self) -> BuiltMicrobatch | None:
        """Schedule the next step and lay out its batch; the caller must send it.

        Returns:
            None if there is nothing to do.

        Raises:
            RequestsFailedError: some requests must end before; nothing is taken to be sent.
        """
        for group in self._groups():
            scheduled = group.select()
            if scheduled:
                batch = self._batch(scheduled, group.group_id)
                self.scheduler.sent(scheduled)
                self._next = group.group_id + 1
                return BuiltMicrobatch(scheduled, batch, group)
        return None

    def _batch(self, scheduled: list[ScheduledRows], group_id: int) -> Batch:
        try:
            return self._builder.build(scheduled, group_id)
        except Exception as error:
            errors = {}
            for rows in scheduled:
                try:
                    self._builder.build([rows], group_id)
                except Exception as of_request:
                    errors[rows.request] = of_request
            # If each can be built alone, nobody knows which of them it is.
            raise RequestsFailedError(
                errors or dict.fromkeys((rows.request for rows in scheduled), error)
            ) from error

    def dispatch(
        self, pruning: PrunesSteps | None = None, ahead: DraftsDuringSteps | None = None
    ) -> Microbatch | None:
        """Send the next step to the devices.

        Args:
            pruning: may take rows out of it.
            ahead: may draft beside it.

        Returns:
            None if there was nothing to do.

        Raises:
            RequestsFailedError: see `build`.
        """
        begun = self._clock()
        built = None if self.executor.lost else self.build()
        if built is None:
            return None
        scheduled, batch, group = built
        step = overlapped = None
        if pruning is not None:
            step = pruning.begin(self.local, self._builder, scheduled, batch)
        if ahead is not None and step is None:
            overlapped = ahead.begin(self.local, scheduled, batch)
        output = self.executor.dispatch(batch, group.group_id, step, overlapped)
        if ahead is not None and overlapped is not None:
            ahead.sent()
        if step is not None:
            scheduled, batch = step.scheduled, step.batch
        return Microbatch(scheduled, batch, output, begun, group)

    def _groups(self) -> Iterator[MicrobatchGroup]:
        """Of all groups, from the one that is next."""
        num_groups = self.executor.plan.microbatches
        for number in range(self._next, self._next + num_groups):
            yield MicrobatchGroup(self.scheduler, number % num_groups, num_groups)
