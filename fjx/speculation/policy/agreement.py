"""Where two texts begin to differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def agreeing(tokens: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens, from the first on, are the same in both."""
    pairs = zip(tokens, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
