"""What a simulated replica is made of: its sizes, its steps, and who hears of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import simpy

from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows
from fjx.sim.costs import StageCosts

TOKEN = 1
"""What every simulated token is; a drafted token that is another one is wrong."""


@dataclass(frozen=True, kw_only=True)
class ReplicaLimits:
    """The sizes of a replica, as in `fjx.pipeline.limits.Limits`."""

    num_pages: int
    page_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_draft_rows: int = 0

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV memory has room for."""
        return (self.num_pages - 1) * self.page_size

    def check_fits(self, request: Request) -> None:
        """Check that a request can be served at all.

        Raises:
            ValueError: it does not fit into the KV memory.
        """
        if request.max_len > self.kv_tokens:
            raise ValueError(
                f"request {request.id} will have {request.max_len} tokens, the replica has room "
                f"for {self.kv_tokens}; refuse it before"
            )


class Listener(Protocol):
    """Hears what becomes of requests."""

    def first_token(self, request: Request, now: float) -> None:
        """A request's first token was read."""

    def ended(self, request: Request, now: float) -> None:
        """A request has its last token."""

    def stepped(self, now: float, seconds: float) -> None:
        """The tokens of a step were read so long after those of the step before."""


@dataclass
class SimStep:
    """A step in flight."""

    end: float
    group_id: int
    """Whose rows it has."""
    brings: bool = True
    """Whether it brings tokens."""
    scheduled: list[ScheduledRows] = field(default_factory=list)
    """Rows whose tokens are committed one by one."""
    first: list[Request] = field(default_factory=list)
    """Requests out of sight that get their first token."""
    last: list[Request] = field(default_factory=list)
    """Likewise, their last one."""


@dataclass
class PlanSwitch:
    """A change of plan to be made between two steps."""

    costs: StageCosts
    microbatches: int
    pause_seconds: float
    done: simpy.Event


@dataclass
class FastForward:
    """Steps in which nothing happens, which are made at once."""

    group_ids: list[int]
    """Whose they are, in turn."""
    leaves: Any
    sent: Any
    """See `fjx.sim.timing.run_steps`."""
    steps: int
    read_after: deque[int]
    """For each step that was in flight before: the one of these after which the host reads it."""
    made: int = 0
    """Steps counted so far."""
    cut: bool = False

    @property
    def end(self) -> float:
        """When the host could send another step."""
        return float(self.sent[self.steps])

    def cut_at(self, now: float) -> None:
        """Make no more steps than are sent by now."""
        sent = int(np.searchsorted(self.sent[: self.steps + 1], now))
        self.steps = min(max(sent, self.made, 1), self.steps)

    def sent_by(self, now: float) -> int:
        """Steps sent until now."""
        return int(np.searchsorted(self.sent[: self.steps], now, side="right"))

    def steps_of(self, turn: int, steps: int) -> int:
        """How many of the first so many steps are of the group at this place."""
        return -(-(steps - turn) // len(self.group_ids))


def read_after(group_ids: list[int], in_flight: Sequence[SimStep]) -> deque[int]:
    """For each step in flight, the one of these groups' next steps after which the host reads it:
    the first one whose group has it, or a step behind it, in flight."""
    after, soonest = deque[int](), len(group_ids)
    for step in reversed(in_flight):
        if step.group_id in group_ids:
            soonest = min(soonest, group_ids.index(step.group_id))
        after.appendleft(soonest)
    return after
