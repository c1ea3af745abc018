"""What a policy sees of a round, and what it answers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fjx.speculation.acceptance import AcceptanceModel
from fjx.speculation.allocation import Floats, allocate
from fjx.speculation.cost import CostModel


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
    most_rows: int
    """Most drafted tokens in the step, over all requests."""
    acceptance: AcceptanceModel
    target_cost: CostModel
    draft_cost: CostModel | None
    """None: drafting takes no time (prompt lookup)."""

    @property
    def base_rows(self) -> int:
        """Rows of the step before any drafted token."""
        return len(self.requests) + self.other_rows

    @property
    def context(self) -> int:
        """Tokens of all requests of the round."""
        return sum(request.context for request in self.requests)


class LengthPolicy(Protocol):
    """How long drafts are: a pure function of a round."""

    @property
    def name(self) -> str:
        """As `policy_by_name` takes it."""

    def draft_lengths(self, view: RoundView) -> list[int]:
        """How many tokens to draft for each request, at most its ``most``."""

    def verify_lengths(self, view: RoundView, confidences: Sequence[Sequence[float]]) -> list[int]:
        """How many of the drafted tokens to verify, with the drafter's confidence in each."""


def within(lengths: Sequence[int], most_rows: int) -> list[int]:
    """Lengths that sum up to at most ``most_rows``: the longest are cut first, to equal ones."""
    most = max(most_rows, 0)
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


def most_per_second(
    view: RoundView,
    survivals: Sequence[Sequence[float]],
    draft_seconds: Floats | None = None,
) -> list[int]:
    """The lengths that promise the most tokens a second, see `allocate`."""
    rows = view.base_rows + min(view.most_rows, sum(map(len, survivals)))
    return allocate(
        survivals,
        view.most_rows,
        view.target_cost.row_seconds(rows, view.context),
        draft_seconds,
        base_rows=view.base_rows,
        base_tokens=len(view.requests),
    )
