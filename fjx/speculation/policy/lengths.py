"""How long to draft and how much of it to verify: the policies that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fjx.speculation.policy.faser import Faser
from fjx.speculation.policy.view import (
    LengthPolicy,
    RequestView,
    RoundView,
    best_rate,
    drafted_lengths,
    lengths_for_throughput,
    within,
)

__all__ = [
    "ConfidenceTrim",
    "Faser",
    "Fixed",
    "LengthPolicy",
    "MarginalGain",
    "Off",
    "PerBatch",
    "RequestView",
    "RoundView",
    "policy_by_name",
]

_PLAIN_MORE_OFTEN = 4
"""Than probes are rounds without drafts, where the cost of such a round is not known."""

_NAMES = "off, fixed:K, batch, confidence, faser or marginal"


@dataclass(frozen=True)
class Off(LengthPolicy):
    """No speculation."""

    @property
    def name(self) -> str:
        """See `LengthPolicy`."""
        return "off"

    def draft_lengths(self, view: RoundView) -> list[int]:
        """Draft nothing."""
        return [0] * len(view.requests)

    def verify_lengths(self, view: RoundView, confidences: Sequence[Sequence[float]]) -> list[int]:
        """Verify nothing."""
        return [0] * len(view.requests)


@dataclass(frozen=True)
class Fixed(LengthPolicy):
    """The same length for all requests, always."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"a fixed draft length must be at least 1, got {self.k}")

    @property
    def name(self) -> str:
        """See `LengthPolicy`."""
        return f"fixed:{self.k}"

    def draft_lengths(self, view: RoundView) -> list[int]:
        """k tokens each, as far as rows are left."""
        return _uniform(view, self.k)


@dataclass(frozen=True)
class PerBatch(LengthPolicy):
    """A length for each range of batch sizes, as in vLLM's dynamic speculative decoding."""

    table: tuple[tuple[int, int], ...] = ((64, 3), (128, 1))
    """(most requests, length), by increasing size; more requests than in the last entry draft
    nothing. The default is the example of vLLM's documentation."""

    @property
    def name(self) -> str:
        """See `LengthPolicy`."""
        return "batch"

    def draft_lengths(self, view: RoundView) -> list[int]:
        """The table's length, as far as rows are left."""
        size = len(view.requests)
        return _uniform(view, next((k for most, k in self.table if size <= most), 0))


@dataclass(frozen=True)
class ConfidenceTrim(LengthPolicy):
    """A fixed length is drafted and the most promising tokens of all requests are verified.

    After vLLM's adaptive verification: each (request, position) is scored by its survival, and as
    many are verified as give the most expected tokens a second under the measured costs.
    """

    k: int = 8
    threshold: float = 0.0
    """A token whose survival is less is never verified."""
    probe_every: int = 64
    """See `MarginalGain`."""

    @property
    def name(self) -> str:
        """See `LengthPolicy`."""
        return "confidence"

    def draft_lengths(self, view: RoundView) -> list[int]:
        """k tokens each."""
        return [min(self.k, request.most) for request in view.requests]

    def verify_lengths(self, view: RoundView, confidences: Sequence[Sequence[float]]) -> list[int]:
        """The most likely tokens, while they pay."""
        if _is_plain(view, self.probe_every):
            return [0] * len(view.requests)
        likely = [
            tuple(value for value in survival if value >= self.threshold)
            for survival in _survivals(view, confidences)
        ]
        lengths = lengths_for_throughput(view, likely)
        return _probed(view, lengths, drafted_lengths(view, confidences), self.probe_every)


@dataclass(frozen=True)
class MarginalGain(LengthPolicy):
    """Each request drafts and verifies what brings all of them the most tokens a second.

    Before drafting, survivals are expected from the request's record, and drafting has its cost;
    where it has none, or none is known yet, as much is drafted as is allowed. A drafter that can
    stop goes on as long as the confidences so far say that another round pays. After drafting
    survivals follow from the confidences, and drafting is paid for.

    Estimates that hold requests from drafting are never contradicted. So once in a while some of
    these verify one token. Likewise, while it is not known what a step without drafts costs, there
    is one now and then.
    """

    probe_every: int = 64
    """Tokens of the first request from one such round to the next; 0: never."""

    weighs_plain = True

    @property
    def name(self) -> str:
        """See `LengthPolicy`."""
        return "marginal"

    def draft_lengths(self, view: RoundView) -> list[int]:
        """What pays, drafting included."""
        most = [request.most for request in view.requests]
        if view.draft_cost is None or view.stops:
            return most
        if _is_plain(view, self.probe_every):
            return [0] * len(most)
        survivals = [view.acceptance.expected(each.key, each.most) for each in view.requests]
        lengths = lengths_for_throughput(view, survivals, view.draft_seconds)
        return _probed(view, lengths, most, self.probe_every)

    def continue_drafting(self, view: RoundView, confidences: Sequence[Sequence[float]]) -> bool:
        """While another round promises more tokens a second than what is drafted."""
        rounds = max(map(len, confidences), default=0)
        if view.draft_seconds is None or not rounds:
            return True
        survivals = _survivals(view, confidences)
        chance = view.acceptance.chance(rounds)
        longer = [
            (*each, each[-1] * chance) if len(each) == rounds < request.most else each
            for request, each in zip(view.requests, survivals, strict=True)
        ]
        drafting = [sum(len(each) > i for each in longer) for i in range(rounds + 1)]
        *before, last = view.draft_seconds[drafting].tolist()
        begun = (view.first_seconds or before[0]) + sum(before[1:])
        return best_rate(view, longer, begun + last) > best_rate(view, survivals, begun)

    def verify_lengths(self, view: RoundView, confidences: Sequence[Sequence[float]]) -> list[int]:
        """What pays of what was drafted."""
        if _is_plain(view, self.probe_every):
            return [0] * len(view.requests)
        lengths = lengths_for_throughput(view, _survivals(view, confidences))
        return _probed(view, lengths, drafted_lengths(view, confidences), self.probe_every)


def policy_by_name(text: str) -> LengthPolicy:
    """The policy of a name: off, fixed:K, batch, confidence, faser or marginal.

    Raises:
        ValueError: there is none; the message has the choices.
    """
    name, _, argument = text.partition(":")
    if name == "fixed" and argument.isdecimal() and int(argument) >= 1:
        return Fixed(int(argument))
    policies = (Off(), PerBatch(), ConfidenceTrim(), Faser(), MarginalGain())
    for policy in policies:
        if policy.name == text:
            return policy
    raise ValueError(f"no speculation policy {text!r}; use {_NAMES}, where K is at least 1")


def _uniform(view: RoundView, k: int) -> list[int]:
    return within([min(k, request.most) for request in view.requests], view.max_rows)


def _survivals(view: RoundView, confidences: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    return [
        view.acceptance.survival(request.key, each[: request.most])
        for request, each in zip(view.requests, confidences, strict=True)
    ]


def _is_plain(view: RoundView, probe_every: int) -> bool:
    """Whether it is time to find out what the step costs without drafts."""
    if probe_every < _PLAIN_MORE_OFTEN or not view.requests:
        return False
    due = view.requests[0].context % (probe_every // _PLAIN_MORE_OFTEN) == 1
    return due and not view.target_cost.knows(view.base_rows)


def _probed(
    view: RoundView, lengths: Sequence[int], most: Sequence[int], probe_every: int
) -> list[int]:
    """The lengths; when it is time to probe, with one token for some requests that have none.

    For as many, in turn, as lengthen the step no more than one of them does.
    """
    probed = list(lengths)
    if not probe_every or not view.requests or view.requests[0].context % probe_every:
        return probed
    idle = [i for i, limit in enumerate(most) if limit and not probed[i]]
    rows = view.base_rows + sum(probed)
    room = min(len(idle), view.max_rows - sum(probed))
    if room <= 0:
        return probed
    seconds = view.target_cost.row_seconds(rows + room, view.context)[rows + 1 :]
    count = np.count_nonzero(seconds <= seconds[0] * (1 + 1e-9))
    turn = view.requests[0].context // probe_every * count % len(idle)
    for i in (idle[turn:] + idle[:turn])[:count]:
        probed[i] = 1
    return probed
