"""What a simulated replica is made of: its sizes, its steps, and who hears of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import simpy

from fjx.engine.request import Request
from fjx.engine.scheduler import ScheduledRows
from fjx.sim.costs import StageCosts


@dataclass(frozen=True, kw_only=True)
class ReplicaLimits:
    """The sizes of a replica, as in `fjx.pipeline.limits.Limits`."""

    num_pages: int
    page_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_draft_rows: int = 0
    share_prefixes: bool = False


class Listener(Protocol):
    """Hears what becomes of requests."""

    def first_token(self, request: Request, now: float) -> None:
        """A request's first token was read."""

    def ended(self, request: Request, now: float) -> None:
        """A request has its last token."""

    def stepped(self, now: float, seconds: float) -> None:
        """The tokens of a step were read so long after those of the step before."""


@dataclass
class Step:
    """A step in flight."""

    end: float
    scheduled: list[ScheduledRows] = field(default_factory=list)
    """Rows whose tokens are committed one by one."""
    first: list[Request] = field(default_factory=list)
    """Requests out of sight that get their first token."""
    last: list[Request] = field(default_factory=list)
    """Likewise, their last one."""
    microbatches: list[Any] = field(default_factory=list)

    @property
    def eventful(self) -> bool:
        """Whether reading it brings anything that only it brings."""
        return bool(self.scheduled or self.first or self.last)


@dataclass
class Switch:
    """A change of plan to be made between two steps."""

    costs: StageCosts
    microbatches: int
    pause_seconds: float
    done: simpy.Event


@dataclass
class Stretch:
    """Equal steps that are made at once."""

    begun: float
    """When the first one is sent."""
    prior: float
    """When the step before ends."""
    ends: Any
    made: int = 0
    """Steps counted so far."""
    cut: bool = False

    def read_at(self, steps: int) -> float:
        """When the host has read all but the last of so many steps, and could send another."""
        if steps == 0:
            return self.begun
        return self.prior if steps == 1 else max(float(self.ends[steps - 2]), self.prior)

    def steps_read_after(self, now: float) -> int:
        """The fewest steps after which the host looks for work no sooner than now, at least 1."""
        if now <= self.prior:
            return 1
        return min(2 + int(np.searchsorted(self.ends, now)), len(self.ends))

    def sent_by(self, now: float) -> int:
        """Steps sent until now."""
        return self.steps_read_after(now) if now > self.begun else 1


class Lengths:
    """Stands for the engine's transcripts: a request ends by its length."""

    def add(self, request: Request, token: int) -> tuple[str, str | None]:
        """See `fjx.engine.text.Transcripts.add`."""
        return "", "length" if len(request.tokens) >= request.max_len else None
