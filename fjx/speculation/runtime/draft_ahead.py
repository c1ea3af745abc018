"""Drafting ahead: while a step verifies drafts, what may follow them is drafted on the same device.

The verification and the drafting are one program, in which a GPU runs them side by side. If all of
a draft proves right, and the token behind it is the first one that was drafted ahead, the rest is
the next draft, and no time was spent on it; if not, it is drafted in turn as ever.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import jax

from fjx.pipeline.batch import Batch
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.chain import Chain, OverlappedChain
from fjx.pipeline.executor import Executor
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows
from fjx.speculation.policy.cost import CostModel
from fjx.speculation.policy.payoff_gate import PayoffGate

logger = logging.getLogger(__name__)

_ALONE_EVERY = 32
"""Steps from one that is sent alone to the next one: what that takes must stay known."""


DraftAheadMode = Literal["off", "auto", "always"]
"""Whether to draft ahead: never; where it pays, on a device that can do two things at once, which a
CPU cannot; or wherever it can be done."""


@runtime_checkable
class DraftsAhead(Protocol):
    """A drafter that needs nothing of a step to draft on, such as `DraftModel`."""

    longest: int

    def runs_on(self, placement: BoundMesh) -> bool:
        """Whether all of it is on this mesh."""

    def begin_ahead(self, requests: Sequence[Request], lengths: Sequence[int]) -> Chain | None:
        """Get ready to draft so many tokens to follow those that the requests have now, drafted
        ones included. Whoever sends the chain also calls `sent_ahead`; None: there is nothing to
        send."""

    def sent_ahead(self) -> None:
        """The chain of `begin_ahead` is under way."""

    def give_up_ahead(self) -> None:
        """The chain of `begin_ahead` will not be sent."""


@dataclass
class _Step:
    """One that was drafted beside."""

    scheduled: Sequence[ScheduledRows]
    bucket: int
    slowdown: float | None = None
    """Seconds by which it took longer than alone; None: not known, or not yet."""


def draft_ahead(drafter: object, cost: CostModel, mode: DraftAheadMode) -> DraftAhead | None:
    """What drafts ahead; None: nothing, or this drafter cannot. ``cost``: of the target's steps."""
    tries = mode == "always" or (mode == "auto" and jax.default_backend() != "cpu")
    if not tries or not isinstance(drafter, DraftsAhead):
        return None
    return DraftAhead(drafter, cost, mode == "always")


class DraftAhead:
    """Decides beside which steps to draft: those where the time of drafting that it saves is more
    than that by which it slows them down, both measured."""

    def __init__(self, drafter: DraftsAhead, cost: CostModel, always: bool = False) -> None:
        """
        Args:
            drafter: drafts.
            cost: of the target's steps.
            always: draft beside every step that can be, whatever it costs.
        """
        self._drafter = drafter
        self._cost = cost
        self._always = always
        self._gates: dict[int, PayoffGate] = defaultdict(PayoffGate)
        self._last: _Step | None = None
        self._alone = 0
        self.steps = 0
        self.hidden_seconds = self.slowdown_seconds = 0.0
        self._failed = False

    @property
    def pays(self) -> bool:
        """Whether it is done at the size of the last step beside which something was drafted."""
        return self._last is not None and (self._always or self._gates[self._last.bucket].pays)

    def begin(
        self, executor: Executor, scheduled: Sequence[ScheduledRows], batch: Batch
    ) -> OverlappedChain | None:
        """A step is about to be sent; None: nothing is drafted beside it."""
        try:
            return None if self._failed else self._begin(executor, scheduled, batch)
        except Exception as error:
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        """Draft in turn from now on: tokens come later, but the same ones."""
        logger.error("drafting ahead failed, and is off from now on", exc_info=error)
        self._failed = True

    def _begin(
        self, executor: Executor, scheduled: Sequence[ScheduledRows], batch: Batch
    ) -> OverlappedChain | None:
        drafts = [
            rows.request
            for rows in scheduled
            if rows.samples > 1 and rows.start + rows.count == rows.request.num_tokens
        ]
        lengths = [self._length(request) for request in drafts]
        if not self._can(executor, lengths) or not self._wanted(batch.num_rows):
            return None
        chain = self._drafter.begin_ahead(drafts, lengths)
        if chain is None:
            return None
        overlapped = executor.overlap_chain(batch, chain)
        if overlapped is None:
            self._drafter.give_up_ahead()
            return None
        self._last = _Step(scheduled, batch.num_rows)
        self.steps += 1
        return overlapped

    def sent(self) -> None:
        """The step was sent, with what is drafted beside it."""
        try:
            self._drafter.sent_ahead()
        except Exception as error:
            self._fail(error)

    def observe_step(self, scheduled: Sequence[ScheduledRows], seconds: float) -> bool:
        """A step was read; whether something was drafted beside it, so that its time is no ordinary
        one."""
        step = self._last
        if step is None or step.scheduled is not scheduled:
            return False
        rows = sum(each.count for each in scheduled)
        if self._cost.knows(rows):
            context = sum(each.start + each.count for each in scheduled)
            step.slowdown = seconds - self._cost.seconds(rows, context)
        return True

    def observe_drafting(self, in_turn: float, seconds: float) -> None:
        """The next drafts took so many seconds; without what was drafted ahead it would have been
        ``in_turn``."""
        step = self._last
        if step is None or step.slowdown is None:
            return
        hidden = in_turn - seconds
        self.hidden_seconds += hidden
        self.slowdown_seconds += step.slowdown
        self._gates[step.bucket].observe(hidden, step.slowdown)
        step.slowdown = None

    def _length(self, request: Request) -> int:
        """Of what to draft ahead: the token behind the draft, and a draft like the last one."""
        length = min(
            len(request.draft), self._drafter.longest, request.max_len - request.num_tokens - 2
        )
        return length + 1 if length > 0 else 0

    def _can(self, executor: Executor, lengths: Sequence[int]) -> bool:
        shapes = executor.pieces.shapes
        return (
            any(lengths)
            and len(shapes) == 1
            and executor.plan.microbatches == 1
            and self._drafter.runs_on(shapes[0].placement)
        )

    def _wanted(self, bucket: int) -> bool:
        if self._always:
            return True
        gate = self._gates[bucket]
        if gate.is_trial():
            return True
        self._alone = (self._alone + 1) % _ALONE_EVERY
        return gate.pays and self._alone != 0
