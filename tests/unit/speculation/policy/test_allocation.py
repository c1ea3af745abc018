"""The allocation is the best of all choices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.speculation.policy.allocation import Floats, allocate

positive = st.floats(0.01, 10)


@st.composite
def survivals(draw: st.DrawFn) -> list[tuple[float, ...]]:
    """Of up to 3 requests with up to 3 tokens; many are equal."""
    share = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]) | st.floats(0, 1)
    drafts = draw(st.lists(st.lists(share, max_size=3), max_size=3))
    return [tuple(itertools.accumulate(draft, lambda a, b: a * b)) for draft in drafts]


@st.composite
def costs(draw: st.DrawFn, rows: int = 24) -> Floats:
    """Of steps: positive, never less for more rows, with jumps."""
    jump = st.just(0.0) | st.floats(0, 3)
    jumps = draw(st.lists(jump, min_size=rows, max_size=rows))
    return draw(positive) + np.cumsum(jumps)


def rate(
    lengths: Sequence[int],
    drafts: Sequence[Sequence[float]],
    verify: Floats,
    draft: Floats | None,
    base_rows: int,
    base_tokens: float,
    num_groups: int = 1,
) -> float:
    tokens = base_tokens + sum(sum(d[:n]) for d, n in zip(drafts, lengths, strict=True))
    drafting = 0.0
    for round in range(max(lengths, default=0)):
        if draft is not None:
            drafting += float(draft[sum(n > round for n in lengths)])
    alone = float(verify[base_rows + sum(lengths)]) + drafting
    return tokens / max(alone, num_groups * drafting)


def best_rate(
    drafts: Sequence[Sequence[float]],
    max_rows: int,
    verify: Floats,
    draft: Floats | None,
    base_rows: int,
    base_tokens: float,
    num_groups: int = 1,
) -> float:
    choices = itertools.product(*(range(len(each) + 1) for each in drafts))
    return max(
        rate(lengths, drafts, verify, draft, base_rows, base_tokens, num_groups)
        for lengths in choices
        if sum(lengths) <= max_rows
    )


@given(survivals(), st.integers(0, 9), costs(), st.integers(1, 12), st.floats(0, 5))
def test_no_choice_is_better_under_any_cost(
    drafts: list[tuple[float, ...]], most: int, verify: Floats, rows: int, tokens: float
) -> None:
    lengths = allocate(drafts, most, verify, base_rows=rows, base_tokens=tokens)
    assert sum(lengths) <= most
    found = rate(lengths, drafts, verify, None, rows, tokens)
    assert found == pytest.approx(best_rate(drafts, most, verify, None, rows, tokens))


@given(
    survivals(),
    st.integers(0, 9),
    costs(),
    positive,
    st.just(0.0) | st.floats(0, 3),
    st.integers(1, 5),
)
def test_no_choice_is_better_with_drafting(
    drafts: list[tuple[float, ...]],
    most: int,
    verify: Floats,
    round: float,
    each: float,
    num_groups: int,
) -> None:
    draft = round + each * np.arange(4.0)
    lengths = allocate(
        drafts, most, verify, draft, base_rows=3, base_tokens=3, num_groups=num_groups
    )
    found = rate(lengths, drafts, verify, draft, 3, 3, num_groups)
    assert found == pytest.approx(best_rate(drafts, most, verify, draft, 3, 3, num_groups))


@given(survivals(), st.integers(0, 9), costs(), costs(rows=4))
def test_drafting_of_any_cost_is_never_worse_than_none(
    drafts: list[tuple[float, ...]], most: int, verify: Floats, draft: Floats
) -> None:
    lengths = allocate(drafts, most, verify, draft, base_rows=3, base_tokens=3)
    assert all(n <= len(each) for n, each in zip(lengths, drafts, strict=True))
    assert rate(lengths, drafts, verify, draft, 3, 3) >= 3 / verify[3] * (1 - 1e-9)


def test_rows_that_padding_pays_for_are_used() -> None:
    """One token more does not pay, three do: after a jump of the cost the next rows are free."""
    verify = np.array([1.0, 1.0, 1.6, 1.6, 1.6, 1.6, 9.0])
    drafts = [(0.5, 0.45, 0.4, 0.3, 0.2)]
    assert allocate(drafts, 1, verify, base_rows=1, base_tokens=1) == [0]
    assert allocate(drafts, 5, verify, base_rows=1, base_tokens=1) == [4]


def test_a_confident_request_gets_the_rows_of_a_doubtful_one() -> None:
    verify = np.full(12, 1.0)
    drafts = [(0.9, 0.8, 0.7, 0.6), (0.5, 0.2), ()]
    assert allocate(drafts, 4, verify, base_rows=3, base_tokens=3) == [4, 0, 0]
    assert allocate(drafts, 5, verify, base_rows=3, base_tokens=3) == [4, 1, 0]


def test_a_batch_that_costs_in_proportion_to_its_rows_drafts_nothing() -> None:
    verify = np.arange(100.0)
    assert allocate([(0.9, 0.8)] * 20, 40, verify, base_rows=20, base_tokens=20) == [0] * 20


def test_a_round_of_drafting_is_shared_rather_than_followed_by_another() -> None:
    verify, draft = np.full(8, 1.0), np.full(3, 0.3)
    drafts = [(0.9, 0.81), (0.8,)]
    assert allocate(drafts, 2, verify, draft, base_rows=2, base_tokens=2) == [1, 1]


def test_of_equally_good_choices_the_shortest_is_taken() -> None:
    verify = np.full(8, 2.0)
    assert allocate([(1.0, 0.0, 0.0)], 3, verify, base_rows=1, base_tokens=1) == [1]
    assert allocate([(1.0,)], 1, np.arange(8.0), base_rows=1, base_tokens=1) == [0]


def test_nothing_to_draft_or_no_room_gives_nothing() -> None:
    verify = np.full(4, 1.0)
    assert allocate([], 4, verify, base_rows=1, base_tokens=1) == []
    assert allocate([(), ()], 4, verify, base_rows=2, base_tokens=2) == [0, 0]
    assert allocate([(0.9,)], 0, verify, base_rows=1, base_tokens=1) == [0]
    assert allocate([(0.9,)], 4, verify, base_rows=3, base_tokens=1) == [0]


def test_drafts_are_shorter_where_the_host_drafts_for_other_parts_meanwhile() -> None:
    survivals = [tuple(0.9**i for i in range(1, 9))]
    verify, draft = np.full(10, 10.0), np.array([0.0, 2.0])
    alone, of_four = (
        allocate(survivals, 8, verify, draft, base_rows=1, base_tokens=1, num_groups=num_groups)
        for num_groups in (1, 4)
    )
    assert alone == [7]
    assert of_four == [2], "two rounds for each of four groups take the time of a step and more"
