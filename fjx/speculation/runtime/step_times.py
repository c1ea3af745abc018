"""How long steps take, where those of several groups are under way at once.

A group's next step begins, at the earliest, when its last one has ended; meanwhile the stages serve
the other groups, too. So what counts for a step is its group's *cycle*: from the reading of the
group's last step to its own. Plain decoding and speculation are compared by it, whether few groups
or all of them have requests; with one microbatch it is the time between two steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fjx.scheduling.microbatches import Microbatch, MicrobatchGroup
from fjx.speculation.policy.throttle import DraftMode

_IDLE_SECONDS = 0.05
"""From a step to the next one: more means that there was nothing to do."""
_AT_ONCE_SECONDS = 5e-4
"""A step that is read so soon after the host's last work for another group had ended before."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What preceded a step."""

    mode: DraftMode
    running: int = 0
    """Requests of a group when the mode was chosen."""
    drafted: bool = False
    """Whether there are drafts in it."""
    drafting_seconds: float = 0.0
    """Of the host, on them."""


class Work(NamedTuple):
    """What several steps did."""

    steps: int = 0
    rows: int = 0
    """Without those of drafted tokens."""
    decoding: int = 0
    """Those that chose a token."""
    context: int = 0
    """Tokens of the requests."""

    def plus(self, step: Sequence[Microbatch]) -> Work:
        """With a step more."""
        rows = [each for microbatch in step for each in microbatch.scheduled]
        return Work(
            self.steps + 1,
            self.rows + sum(each.count - max(each.samples - 1, 0) for each in rows),
            self.decoding + sum(each.samples > 0 for each in rows),
            self.context + sum(each.start + each.count for each in rows),
        )

    def since(self, before: Work) -> Work:
        """Without what was done before."""
        return Work(*(now - then for now, then in zip(self, before, strict=True)))


class TimedStep(NamedTuple):
    """A step that was read."""

    prepared: Prepared
    seconds: float
    """Since its group could go on; what was drafted for it does not count, but what else the host
    did, does: where steps overlap it is nothing."""
    cycle: float | None
    """Since its group's last step was read; None: there was none, or nothing to do in between."""
    is_plain: bool
    """Whether the cycle is one of plain decoding: the step was sent before the last one was read,
    and nothing was drafted for meanwhile, in no group."""
    work: Work
    """Of the steps that were read in the cycle, of all groups: they share the stages."""
    was_late: bool
    """Whether the host did something for other groups when the step ended: it took less than
    ``seconds``."""


class _Read(NamedTuple):
    at: float
    work: Work = Work()
    """Of all steps until then."""


class StepTimes:
    """Follows the steps in flight, and when each group's last one was read."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[Microbatch, Prepared]] = deque()
        self._read: dict[MicrobatchGroup, _Read] = {}
        self._last = _Read(-math.inf)
        self._drafted_for = -math.inf
        """When a step with drafts was sent or read, the last time."""
        self._last_sent = -math.inf

    def sent(self, step: Sequence[Microbatch], prepared: Prepared, now: float) -> None:
        """A step was sent, which is done now."""
        self._under_way.append((step[0], prepared))
        self._last_sent = now
        if prepared.mode is DraftMode.DRAFT:
            self._drafted_for = max(step[0].sent, self._drafted_for)

    def read(self, step: Sequence[Microbatch], now: float) -> TimedStep | None:
        """A step was read, and what it brought is committed; None: nobody has said that it was
        sent."""
        prepared = self._pop_prepared(step[0])
        sent, before = step[0].sent, [self._read[t.group] for t in step if t.group in self._read]
        idle = not before or sent - self._last.at >= _IDLE_SECONDS
        worked = max(self._last.at, self._last_sent)
        was_late = step[0].group.num_groups > 1 and now - worked < _AT_ONCE_SECONDS
        self._last = _Read(now, self._last.work.plus(step))
        for group in (each.group for each in step):
            self._read.pop(group, None)
            if group.running:
                self._read[group] = self._last
        if prepared is None:
            return None
        last = max(before, default=_Read(-math.inf))
        begun = sent if idle else min(sent, last.at + prepared.drafting_seconds)
        timed = TimedStep(
            prepared,
            seconds=now - max(begun, last.at),
            cycle=None if idle else now - last.at,
            is_plain=prepared.mode is DraftMode.COOLDOWN
            and sent < last.at
            and self._drafted_for <= last.at,
            work=self._last.work.since(last.work),
            was_late=was_late,
        )
        if prepared.mode is DraftMode.DRAFT:
            self._drafted_for = max(now, self._drafted_for)
        return timed

    def plan_changed(self) -> None:
        """The groups are others now; no step is in flight."""
        self._under_way.clear()
        self._read.clear()

    def _pop_prepared(self, microbatch: Microbatch) -> Prepared | None:
        """Forget a step that is in flight, and those before it, which were never read."""
        if not any(sent is microbatch for sent, _ in self._under_way):
            return None
        while True:
            sent, prepared = self._under_way.popleft()
            if sent is microbatch:
                return prepared
