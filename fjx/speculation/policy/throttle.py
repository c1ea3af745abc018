"""Whether speculating is worth it: what it brings, against what plain decoding is measured to."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from fjx.speculation.policy.cost import CostModel
from fjx.speculation.policy.mean import ForgettingMean

_FEWEST, _MEMORY = 8, 256
"""Rounds of a try before a judgement, and after which earlier ones are mostly forgotten."""
_DOUBT = 8.0
"""Over the root of the number of rounds: standard errors by which the mean must lie below zero. A
cooldown that was wrong costs its whole length, one that comes late a few rounds: so doubt is great
after few rounds. It falls faster than their standard error, or losses of a few percent would never
be believed."""
_PROVEN = 64
"""Rounds without a cooldown after which the next cooldown is a first one."""
_SHORT = 64
"""Steps of a first cooldown; each that was right is followed by one of twice the length."""
BASELINE_STEPS = 5
"""Steps without drafts from which plain decoding is learned."""
_FIRST_BASELINE, _BASELINE_SPACING = 8, 512
"""Rounds at a size before the first one, and from one to the next."""
_MAX_LOST = 4.0
"""Plain steps that a round can lose, as far as it is judged by: one that the machine holds up for
long says nothing of the others."""


class DraftMode(Enum):
    """What the next step is for the drafter."""

    DRAFT = "draft"
    """Drafts are made for it."""
    READ = "read"
    """No draft is made, but a drafter that follows the target reads the step."""
    COOLDOWN = "cooldown"
    """No draft is made, and the drafter does not read the step."""


@dataclass
class _BatchSizeRecord:
    """What was measured with one number of requests."""

    gain: ForgettingMean = field(default_factory=lambda: ForgettingMean(_MEMORY))
    """Mean of the number of plain steps whose time a round saved."""
    square: ForgettingMean = field(default_factory=lambda: ForgettingMean(_MEMORY))
    tried: int = 0
    """Rounds since the last cooldown."""
    cooldown: int = 0
    spacing: int = 0
    total: int = 0
    """Rounds, those of large prompts included."""
    baseline_steps: int = 0

    def begin(self) -> None:
        """Judge by what comes more than by what was."""
        self.tried = 0
        self.gain.discount(_FEWEST)
        self.square.discount(_FEWEST)

    def add(self, gain: float) -> None:
        """Count a round that saved the time of ``gain`` plain steps."""
        self.tried += 1
        self.gain.add(gain)
        self.square.add(gain * gain)

    @property
    def loses(self) -> bool:
        """Whether rounds take longer than what they bring, and that is no accident."""
        if self.tried < _FEWEST:
            return False
        variance = max(self.square.value - self.gain.value**2, 0.0)
        rounds = min(self.gain.count, _MEMORY)
        return self.gain.value + _DOUBT * math.sqrt(variance) / rounds < 0


class MeasuredRound(NamedTuple):
    """A step that was drafted for, and what came in the time since the step before it of the same
    group of the requests."""

    steps: int
    """Steps that came in that time, of all groups."""
    rows: int
    """Rows of all these steps, without those of drafted tokens."""
    decoding: int
    """Rows that chose a token."""
    context: int
    """Tokens of all requests."""
    seconds: float
    tokens: int
    """Tokens that the step brought."""
    requests: int
    """Requests that it brought tokens to."""


class SpeculationThrottle:
    """Switches speculation off for a number of requests at which it loses, and tries again later.

    A round of speculation brings some tokens in some time, all that it needs included: drafting,
    the wait for the host. Plain decoding would have taken ``tokens / requests`` plain steps for
    them, the first one with the round's prompts. Where rounds take longer than that, steps are
    plain for a while; the last ones before the next try are read by the drafter, which has to catch
    up. What a plain step takes is learned from a few of them now and then.

    Where the requests are in several groups, whose steps are under way at once, a step's time is
    that from one step of a group to its next one, for rounds and for plain steps alike, and depends
    on the rows of all groups: where the stages of a pipeline are busy with the other groups anyway,
    a round that keeps them busy for longer loses.
    """

    def __init__(self, buckets: Sequence[int], catching_up: int = 0, longest: int = 1024) -> None:
        """
        Args:
            buckets: padded sizes of the target's steps.
            catching_up: steps that a drafter must have read before it is of use again.
            longest: steps of a cooldown, at most.
        """
        self._buckets = tuple(buckets)
        self._plain = CostModel(buckets, padded=True)
        self._records: dict[int, _BatchSizeRecord] = defaultdict(_BatchSizeRecord)
        self._catching_up = catching_up
        self._longest = longest
        self.num_groups = 1
        """Groups of the requests: baselines and cooldowns last this many times as many steps."""
        self.saved_seconds = 0.0
        """Seconds that all rounds have saved."""

    def next_mode(self, requests: int) -> DraftMode:
        """The mode of a step with this many requests in its group; counts the step."""
        record = self._records[self._size(requests)]
        if record.baseline_steps > 0:
            record.baseline_steps -= 1
            return DraftMode.COOLDOWN
        if record.cooldown <= 0:
            return DraftMode.DRAFT
        record.cooldown -= 1
        return (
            DraftMode.READ
            if record.cooldown <= self._catching_up * self.num_groups
            else DraftMode.COOLDOWN
        )

    def observe_plain(self, rows: int, context: int, seconds: float) -> None:
        """A step without drafts, which overlapped with the host's work; rows and context are those
        of all steps in that time, see `MeasuredRound`."""
        self._plain.offer(rows, context, seconds)

    def observe_round(self, requests: int, made: MeasuredRound) -> None:
        """A step that was drafted for has been read; ``requests``: as `next_mode` was asked."""
        record = self._records[self._size(requests)]
        record.total += 1
        if (
            record.total % (_BASELINE_SPACING * self.num_groups)
            == _FIRST_BASELINE * self.num_groups
        ):
            record.baseline_steps = BASELINE_STEPS * self.num_groups
        if not (self._plain.knows(made.rows) and self._plain.knows(made.decoding)):
            return
        # Prompts in the round would have been computed in one plain step, and not in each of them.
        first, further = (
            self._plain.seconds(rows, made.context) for rows in (made.rows, made.decoding)
        )
        saved = first + (made.tokens / made.requests - 1) * further - made.seconds
        self.saved_seconds += saved / made.steps
        record.add(max(saved / further, -_MAX_LOST))
        if record.loses:
            record.spacing = min(2 * record.spacing or _SHORT, self._longest)
            record.cooldown = (record.spacing + self._catching_up) * self.num_groups
            record.begin()
        elif record.tried >= _PROVEN:
            record.spacing = 0

    def _size(self, requests: int) -> int:
        """Index of the bucket to which steps of this many rows are padded."""
        return bisect_left(self._buckets, requests)
