"""How long steps take, where those of several parts are under way at once.

A part's next step begins, at the earliest, when its last one has ended; meanwhile the stages serve
the other parts, too. So what counts for a step is its part's *cycle*: from the reading of the
part's last step to its own. Plain decoding and speculation are compared by it, whether few parts or
all of them have requests; with one microbatch it is the time between two steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fjx.engine.turns import Microbatch, Turn
from fjx.speculation.worth import Mode

_IDLE_SECONDS = 0.05
"""From a step to the next one: more means that there was nothing to do."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What preceded a step."""

    mode: Mode
    running: int = 0
    """Requests of a part when the mode was chosen."""
    drafted: bool = False
    """Whether there are drafts in it."""
    drafting_seconds: float = 0.0
    """Of the host, on them."""


class Timed(NamedTuple):
    """A step that was read."""

    prepared: Prepared
    seconds: float
    """Since its part could go on; what was drafted for it does not count, but what else the host
    did, does: where steps overlap it is nothing."""
    cycle: float | None
    """Since its part's last step was read; None: there was none, or nothing to do in between."""
    is_plain: bool
    """Whether the cycle is one of plain decoding: the step was sent before the last one was read,
    and nothing was drafted for meanwhile, in no part."""
    at_once: int
    """Steps that were read in the cycle, of all parts."""


class _Read(NamedTuple):
    at: float
    number: int


class StepTimes:
    """Follows the steps in flight, and when each part's last one was read."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[Microbatch, Prepared]] = deque()
        self._read: dict[Turn, _Read] = {}
        self._last = _Read(-math.inf, 0)
        self._drafted_for = -math.inf
        """When a step with drafts was sent or read, the last time."""

    def sent(self, step: Sequence[Microbatch], prepared: Prepared) -> None:
        """A step was sent."""
        self._under_way.append((step[0], prepared))
        if prepared.mode is Mode.DRAFT:
            self._drafted_for = max(step[0].sent, self._drafted_for)

    def read(self, step: Sequence[Microbatch], now: float) -> Timed | None:
        """A step was read, and what it brought is committed; None: nobody has said that it was
        sent."""
        prepared = self._take(step[0])
        sent, before = step[0].sent, [self._read[t.turn] for t in step if t.turn in self._read]
        idle = not before or sent - self._last.at >= _IDLE_SECONDS
        self._last = _Read(now, self._last.number + 1)
        for turn in (each.turn for each in step):
            self._read.pop(turn, None)
            if turn.running:
                self._read[turn] = self._last
        if prepared is None:
            return None
        last = max(before, default=_Read(-math.inf, 0))
        begun = sent if idle else min(sent, last.at + prepared.drafting_seconds)
        timed = Timed(
            prepared,
            seconds=now - max(begun, last.at),
            cycle=None if idle else now - last.at,
            is_plain=prepared.mode is Mode.REST and sent < last.at and self._drafted_for <= last.at,
            at_once=self._last.number - last.number,
        )
        if prepared.mode is Mode.DRAFT:
            self._drafted_for = max(now, self._drafted_for)
        return timed

    def plan_changed(self) -> None:
        """The parts are others now; no step is in flight."""
        self._under_way.clear()
        self._read.clear()

    def _take(self, microbatch: Microbatch) -> Prepared | None:
        """Forget a step that is in flight, and those before it, which were never read."""
        if not any(sent is microbatch for sent, _ in self._under_way):
            return None
        while True:
            sent, prepared = self._under_way.popleft()
            if sent is microbatch:
                return prepared
