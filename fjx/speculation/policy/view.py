"""What a policy sees of a round, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import ClassVar

import numpy as np

from fjx.speculation.policy.acceptance import AcceptanceModel
from fjx.speculation.policy.allocation import Floats, allocate
from fjx.speculation.policy.cost import CostModel


@dataclass(frozen=True)
class RequestView:
    """A request that may draft in this round."""

    key: Hashable
    """Its name in the acceptance model."""
    most: int
    """Longest draft allowed, in tokens."""
    context: int
    """Tokens it has."""


@dataclass(frozen=True, kw_only=True)
class RoundView:
    """A round: the requests that may draft, the rest of the step, and what is known of both."""

    requests: tuple[RequestView, ...]
    other_rows: int
    """Rows of the step that belong to no request of this round, such as prefill."""
    max_rows: int
    """Most drafted tokens in the step, over all requests."""
    acceptance: AcceptanceModel
    target_cost: CostModel
    draft_cost: CostModel | None
    """Cost of a round of drafting, by the requests that take part; None: it takes no time (prompt
    lookup)."""
    first_cost: CostModel | None = None
    """Cost of the first round, which waits for what the drafter reads; None: like the others."""
    num_groups: int = 1
    """Groups of requests that are drafted for in turn; this round is for one of them."""
    stops: bool = False
    """Whether the drafter can stop after any round, see `LengthPolicy.continue_drafting`."""

    @property
    def base_rows(self) -> int:
        """Rows of the step before any drafted token."""
        return len(self.requests) + self.other_rows

    @cached_property
    def context(self) -> int:
        """Tokens of all requests of the round."""
        return sum(request.context for request in self.requests)

    @cached_property
    def verify_seconds(self) -> Floats:
        """Seconds of the step, by its rows."""
        drafted = sum(request.most for request in self.requests)
        rows = self.base_rows + min(self.max_rows, drafted)
        return self.target_cost.row_seconds(rows, self.context)

    @cached_property
    def verify_list(self) -> list[float]:
        """`verify_seconds`, for a few at a time."""
        seconds: list[float] = self.verify_seconds.tolist()
        return seconds

    @cached_property
    def draft_seconds(self) -> Floats | None:
        """Seconds of a round of drafting, by the number of requests in it; None: not known."""
        if self.draft_cost is None or not self.draft_cost.known:
            return None
        size = len(self.requests)
        contexts = np.linspace(0.0, self.context, size + 1)
        return self.draft_cost.row_seconds(size, contexts)

    @cached_property
    def first_seconds(self) -> float:
        """Seconds of the first round of drafting."""
        if self.first_cost is None or not self.first_cost.known:
            return 0.0
        return self.first_cost.seconds(len(self.requests), self.context)


class LengthPolicy(ABC):
    """How long drafts are: pure functions of a round."""

    weighs_plain: ClassVar[bool] = False
    """Whether drafting rests where it is measured to lose against plain decoding."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name by which `policy_by_name` finds the policy."""

    @abstractmethod
    def draft_lengths(self, view: RoundView) -> list[int]:
        """How many tokens to draft for each request, at most its ``most``."""

    def continue_drafting(self, view: RoundView, confidences: Sequence[Sequence[float]]) -> bool:
        """Whether to draft another round, up to the draft lengths; only asked where the drafter can
        stop. By default always."""
        return True

    def verify_lengths(self, view: RoundView, confidences: Sequence[Sequence[float]]) -> list[int]:
        """How many of the drafted tokens to verify, with the drafter's confidence in each. By
        default all, as far as rows are left."""
        return within(drafted_lengths(view, confidences), view.max_rows)


def drafted_lengths(view: RoundView, confidences: Sequence[Sequence[float]]) -> list[int]:
    """How many tokens of each draft are of use, from the confidences in them."""
    return [
        min(len(each), request.most)
        for request, each in zip(view.requests, confidences, strict=True)
    ]


def within(lengths: Sequence[int], max_rows: int) -> list[int]:
    """Lengths that sum up to at most ``max_rows``: the longest are cut first, to equal ones."""
    most = max(max_rows, 0)
    level = max(lengths, default=0)
    while sum(min(length, level) for length in lengths) > most:
        level -= 1
    cut = [min(length, level) for length in lengths]
    spare = most - sum(cut)
    for i, length in enumerate(lengths):
        if spare and length > level:
            cut[i] += 1
            spare -= 1
    return cut


def lengths_for_throughput(
    view: RoundView,
    survivals: Sequence[Sequence[float]],
    draft_seconds: Floats | None = None,
) -> list[int]:
    """The lengths that promise the most tokens a second, see `allocate`."""
    return allocate(
        survivals,
        view.max_rows,
        view.verify_seconds,
        draft_seconds,
        base_rows=view.base_rows,
        base_tokens=len(view.requests),
        num_groups=view.num_groups,
    )


def best_rate(view: RoundView, survivals: Sequence[Sequence[float]], drafting: float) -> float:
    """Tokens a second of the best lengths, after ``drafting`` seconds of drafting."""
    seconds, base, least = view.verify_list, view.base_rows, view.num_groups * drafting
    tokens = float(len(view.requests))
    best = tokens / max(seconds[base] + drafting, least)
    likely = sorted(chain.from_iterable(survivals), reverse=True)
    for value, verifying in zip(likely, seconds[base + 1 :], strict=False):
        tokens += value
        best = max(best, tokens / max(verifying + drafting, least))
    return best
