"""Follows one request's drafts, step by step: the record behind the picture of its rounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fjx.scheduling.microbatches import Microbatch
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows
from fjx.speculation.policy.round_timeline import DraftEvent, RoundTimeline, StepEvent
from fjx.speculation.runtime.drafter import Draft


class RoundLog:
    """Follows the first request that anything is drafted for."""

    def __init__(self) -> None:
        self.rounds = RoundTimeline()
        """What has happened so far."""
        self.request: Request | None = None
        """The one that is followed."""
        self._under_way: deque[tuple[ScheduledRows, StepEvent]] = deque()
        self._length = self._pruned = 0

    def drafted(
        self,
        begun: float,
        ended: float,
        requests: Sequence[Request],
        drafts: Sequence[Draft],
        verified: Sequence[int],
    ) -> None:
        """Drafts were made between these times, of which so many tokens will be verified."""
        for request, draft, count in zip(requests, drafts, verified, strict=True):
            if self.request is None:
                self.request, self._length = request, len(request.tokens)
            if request is self.request and draft.tokens:
                self.rounds.draftings.append(DraftEvent(begun, ended, len(draft.tokens), count))

    def sent(self, microbatches: Sequence[Microbatch]) -> None:
        """A step was sent."""
        for microbatch in microbatches:
            for rows in microbatch.scheduled:
                if self._follows(rows):
                    self._send(rows, microbatch.sent)

    def read(self, microbatches: Sequence[Microbatch], now: float) -> None:
        """The step was read at this time, and what it brought is committed."""
        if self.request is None:
            return
        before, self._length = self._length, len(self.request.tokens)
        for rows in (rows for each in microbatches for rows in each.scheduled):
            # The first step to be read may have been sent before anything was drafted.
            if self._under_way and rows is self._under_way[0][0]:
                _, step = self._under_way.popleft()
                step.read, step.committed = now, self.request.tokens[before:]

    def _follows(self, rows: ScheduledRows) -> bool:
        return rows.request is self.request and rows.samples > 0

    def _send(self, rows: ScheduledRows, sent: float) -> None:
        request = rows.request
        step = StepEvent(sent, [], request.pruned_tokens - self._pruned)
        self._pruned = request.pruned_tokens
        self.rounds.steps.append(step)
        self._under_way.append((rows, step))
        # A draft that has grown says what the last row under way must choose.
        for of_step, each in self._under_way:
            if not of_step.is_void:
                end = of_step.start + of_step.count + 1
                begin = end - of_step.samples
                each.drafted = request.known_tokens(begin, min(end, request.num_tokens))
