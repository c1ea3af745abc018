"""Which drafted tokens are worth their time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ABSENT = -1.0
_TIE = 1 - 1e-12
"""Rates whose quotient is above it are the same but for rounding."""


def allocate(
    survivals: Sequence[Sequence[float]],
    max_rows: int,
    verify_seconds: Floats,
    draft_seconds: Floats | None = None,
    *,
    base_rows: int,
    base_tokens: float,
    num_groups: int = 1,
) -> list[int]:
    """Choose how many tokens of each request's draft to take, for the most tokens a second.

    A choice yields ``base_tokens`` and the sum of the survivals taken. It lasts
    ``verify_seconds[base_rows + m]`` for m tokens, and ``draft_seconds[n]`` for each round of
    drafting in which n requests take part; with several groups, see `round_seconds`. Costs may jump
    (steps are padded), so a token that does not pay may pay together with others: every total is
    weighed, not one token after the other.

    Of m tokens the m most likely ones are best, and they are prefixes of the drafts. With a cost of
    drafting the same holds for a given number of rounds, so every number of rounds is weighed too.
    That is exact for rounds that cost ``a + b n``, and close where they cost about that.

    Args:
        survivals: Of each request, the probability that its first i+1 drafted tokens are all
            accepted, for each token that it may draft; not increasing.
        max_rows: Most drafted tokens in the step, over all requests.
        verify_seconds: By the number of rows; where it ends, no more rows are possible.
        draft_seconds: By the number of requests that draft in a round; None: drafting is free.
        base_rows: Rows of the step before any drafted token, at least 1.
        base_tokens: Tokens that the step yields anyway.
        num_groups: Of all requests, which draft as much, one after the other.

    Returns:
        Tokens to take of each request's draft; of equally good choices, the one with the fewest.
    """
    most = min(max_rows, len(verify_seconds) - 1 - base_rows)
    table = np.array(list(zip_longest(*survivals, fillvalue=_ABSENT)), dtype=np.float64)
    if most <= 0 or table.size == 0:
        return [0] * len(survivals)
    position, request, value = _most_likely_first(np.minimum.accumulate(table))
    drafting = _round_increments(position, draft_seconds)
    verifying = verify_seconds[base_rows:]
    best, chosen = base_tokens / verifying[0], request[:0]
    for rounds in [len(table)] if draft_seconds is None else range(1, len(table) + 1):
        allowed = np.flatnonzero(position < rounds)[:most]
        tokens = base_tokens + value[allowed].cumsum()
        verified = verifying[1 : len(allowed) + 1]
        seconds = round_seconds(verified, drafting[allowed].cumsum(), num_groups)
        rates = tokens / seconds
        highest = rates.max()
        if highest * _TIE > best:
            best = highest
            chosen = request[allowed[: (rates >= highest * _TIE).argmax() + 1]]
    lengths: list[int] = np.bincount(chosen, minlength=len(survivals)).tolist()
    return lengths


def round_seconds(verifying: Floats, drafting: Floats, num_groups: int) -> Floats:
    """From one step of a group of the requests to its next one.

    The steps of other groups are verified meanwhile, but the host drafts for one group at a time: a
    group waits for its own drafting and verification, or for the drafting of all groups.

    Args:
        verifying: Seconds of the group's step.
        drafting: Seconds of drafting for it.
        num_groups: That have requests.
    """
    return np.maximum(verifying + drafting, num_groups * drafting)


def _most_likely_first(
    table: Floats,
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Position, request and survival of each token; of equals, the earlier position first.

    Args:
        table: Survivals by position and request, ``[K, R]``.
    """
    flat = table.ravel()
    order = np.argsort(-flat, kind="stable")[: np.count_nonzero(flat != _ABSENT)]
    position, request = np.divmod(order, table.shape[1])
    return position, request, flat[order]


def _round_increments(position: NDArray[np.intp], draft_seconds: Floats | None) -> Floats:
    """By how much each token, in this order, makes its round of drafting longer."""
    increments = np.zeros(len(position))
    if draft_seconds is not None:
        steps = np.diff(draft_seconds)
        steps[0] = draft_seconds[1]  # a round in which nobody takes part is none
        for each in range(position.max() + 1):
            taking_part = np.flatnonzero(position == each)
            increments[taking_part] = steps[: len(taking_part)]
    return increments
