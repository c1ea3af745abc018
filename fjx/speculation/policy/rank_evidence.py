"""Pruning inside the verification: which drafted tokens a look between two stages leaves."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fjx.speculation.policy.allocation import Floats, allocate

UNKNOWN = -1
"""Rank of a token that the lens does not know."""

_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
"""Between the bins of ranks; the bin behind the last one is of unknown ranks."""
_PRIOR = 4.0
"""Tokens of each kind that every bin is taken to have had, before any was observed."""
_FORGETTING = 0.998
_LEAST, _MOST = 0.01, 0.99


class RankEvidence:
    """What the rank of a drafted token at some depth says about its acceptance.

    By bins of ranks, how many tokens were accepted and how many were rejected. A rank multiplies
    the odds against a token by the ratio of its bin's shares among the rejected and the accepted.
    """

    def __init__(self) -> None:
        bins = len(_EDGES) + 2
        self._accepted, self._rejected = np.zeros(bins), np.zeros(bins)

    def observe(self, ranks: Sequence[int], accepted: int) -> None:
        """Learn from a draft's tokens with these ranks: the first ``accepted`` were right, and the
        next one, if there is one, was wrong."""
        self._accepted *= _FORGETTING
        self._rejected *= _FORGETTING
        for rank in ranks[:accepted]:
            self._accepted[_bin(rank)] += 1
        for rank in ranks[accepted : accepted + 1]:
            self._rejected[_bin(rank)] += 1

    def survival(self, before: Sequence[float], ranks: Sequence[int]) -> tuple[float, ...]:
        """Probability that the first i+1 drafted tokens are all right, for each i, now that their
        ranks are known.

        Args:
            before: these probabilities without the ranks.
            ranks: `UNKNOWN` where there is none.
        """
        factors = (self._rejected + _PRIOR) / (self._rejected.sum() + _PRIOR * len(self._rejected))
        factors /= (self._accepted + _PRIOR) / (self._accepted.sum() + _PRIOR * len(self._accepted))
        survival, reached, product = [], 1.0, 1.0
        for whole, rank in zip(before, ranks, strict=True):
            chance = min(max(whole / reached if reached else 0.0, _LEAST), _MOST)
            against = (1 - chance) / chance * float(factors[_bin(rank)])
            product *= min(max(1 / (1 + against), _LEAST), _MOST)
            reached = whole
            survival.append(product)
        return tuple(survival)


@dataclass(frozen=True)
class Remaining:
    """What the rest of a step costs, after it was looked at between two stages."""

    begun: float
    """Seconds that it has taken so far."""
    row_seconds: Floats
    """Seconds to its end, by the rows that go on."""


def rows_to_keep(
    survivals: Sequence[Sequence[float]], remaining: Remaining, base_rows: int
) -> list[int]:
    """How many tokens of each draft go on, for the most tokens a second: see `allocate`.

    Args:
        survivals: of each request, by drafted token.
        remaining: costs, for at least all rows.
        base_rows: rows that go on in any case, one of each request among them.
    """
    return allocate(
        survivals,
        sum(map(len, survivals)),
        remaining.begun + remaining.row_seconds,
        base_rows=base_rows,
        base_tokens=float(len(survivals)),
    )


def _bin(rank: int) -> int:
    return len(_EDGES) + 1 if rank == UNKNOWN else bisect_right(_EDGES, rank)
