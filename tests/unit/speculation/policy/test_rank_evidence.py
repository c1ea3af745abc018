"""What ranks say, which rows go on, and when looking pays."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.speculation.policy.rank_evidence import UNKNOWN, RankEvidence, Remaining, rows_to_keep


def taught(rounds: int = 400) -> RankEvidence:
    """Right tokens mostly have rank 0, wrong ones mostly a high rank."""
    source, evidence = random.Random(0), RankEvidence()
    for _ in range(rounds):
        right = source.random() < 0.6
        low = source.random() < (0.9 if right else 0.2)
        evidence.observe([0 if low else 300], int(right))
    return evidence


def test_nothing_is_known_at_first() -> None:
    before = (0.7, 0.4, 0.1)
    assert RankEvidence().survival(before, [0, 5000, UNKNOWN]) == pytest.approx(before)


def test_ranks_move_the_odds_by_what_was_observed() -> None:
    evidence = taught()
    (good,) = evidence.survival([0.6], [0])
    (bad,) = evidence.survival([0.6], [300])
    # Bayes: 0.6 * 0.9 against 0.4 * 0.2, and 0.6 * 0.1 against 0.4 * 0.8.
    assert good == pytest.approx(0.54 / 0.62, abs=0.04)
    assert bad == pytest.approx(0.06 / 0.38, abs=0.06)
    first, second = evidence.survival([0.6, 0.36], [300, 0])
    assert first == pytest.approx(bad)
    assert second == pytest.approx(bad * good)


def test_tokens_behind_a_wrong_one_teach_nothing() -> None:
    evidence, same = RankEvidence(), RankEvidence()
    evidence.observe([0, 300, 7, 9], 1)
    same.observe([0, 300], 1)
    assert evidence.survival([0.5] * 2, [7, 300]) == same.survival([0.5] * 2, [7, 300])


drafts = st.lists(
    st.lists(st.floats(0.05, 0.95), min_size=0, max_size=3).map(
        lambda chances: list(itertools.accumulate(chances, lambda a, b: a * b))
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60)
@given(survivals=drafts, seed=st.integers(0, 999), begun=st.floats(0.0, 3.0))
def test_what_goes_on_is_the_best_of_all_choices(
    survivals: list[list[float]], seed: int, begun: float
) -> None:
    base = len(survivals)
    rows = base + sum(map(len, survivals))
    steps = np.random.default_rng(seed).integers(0, 2, rows + 1)
    seconds = np.cumsum(steps).astype(np.float64) + 1.0

    def rate(lengths: tuple[int, ...]) -> float:
        tokens = base + sum(sum(s[:k]) for s, k in zip(survivals, lengths, strict=True))
        return float(tokens / (begun + seconds[base + sum(lengths)]))

    kept = rows_to_keep(survivals, Remaining(begun, seconds), base)
    best = max(itertools.product(*(range(len(each) + 1) for each in survivals)), key=rate)
    assert rate(tuple(kept)) == pytest.approx(rate(best))


def test_what_is_paid_already_makes_rows_worth_keeping() -> None:
    seconds = np.arange(3) * 1.0 + 0.5
    assert rows_to_keep([[0.3]], Remaining(0.0, seconds), 1) == [0]
    assert rows_to_keep([[0.3]], Remaining(9.0, seconds), 1) == [1]
