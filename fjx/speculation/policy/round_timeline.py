"""One request's rounds of speculation over time: what was drafted, sent, pruned and committed."""

from __future__ import annotations

from dataclasses import dataclass, field

from fjx.speculation.policy.agreement import agreeing


@dataclass(frozen=True)
class DraftEvent:
    """A draft was made. Times are seconds of one clock."""

    begun: float
    ended: float
    drafted: int
    """Tokens that were proposed."""
    verified: int
    """Tokens that were sent to be verified."""


@dataclass
class StepEvent:
    """A step of the target that chose tokens for the request."""

    sent: float
    drafted: list[int]
    """The drafted tokens that it verifies."""
    pruned: int = 0
    """Further ones that were taken out of it on the way."""
    read: float | None = None
    """When it was read; None: not yet."""
    committed: list[int] = field(default_factory=list)
    """The tokens that it brought: the drafted ones that proved right, and the target's own behind
    them. None of a step that was sent behind a wrong token: all of it is void."""

    @property
    def accepted(self) -> int:
        """Drafted tokens that proved right."""
        return agreeing(self.drafted, self.committed)

    @property
    def is_void(self) -> bool:
        """Whether it was read and brought nothing."""
        return self.read is not None and not self.committed


@dataclass
class RoundTimeline:
    """The drafts and steps of a request, in the order of time."""

    draftings: list[DraftEvent] = field(default_factory=list)
    steps: list[StepEvent] = field(default_factory=list)
