"""Prompt lookup proposes what a person who rereads the text would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.speculation.policy.ngram import SuffixIndex

texts = st.lists(st.integers(0, 3), max_size=60)


def index_of(tokens: list[int], min_match: int = 2) -> SuffixIndex:
    index = SuffixIndex(min_match)
    index.extend(tokens)
    return index


def follows(tokens: list[int], most: int = 3) -> list[int]:
    return index_of(tokens).propose(most)[0]


def test_it_goes_on_as_the_last_time() -> None:
    assert follows([1, 2, 3, 4, 5, 9, 1, 2, 3]) == [4, 5, 9]


def test_a_longer_match_is_preferred_to_a_later_one() -> None:
    assert follows([6, 1, 2, 3, 50, 7, 2, 3, 60, 6, 1, 2, 3], 1) == [50]


def test_length_is_the_true_length_not_that_of_the_key() -> None:
    """Both places end in the same four tokens; only the earlier one matches further back."""
    early, late = [8, 9, 1, 2, 3, 4, 50], [0, 1, 2, 3, 4, 60]
    assert follows([*early, *late, 8, 9, 1, 2, 3, 4], 1) == [50]


def test_of_equal_matches_the_latest_is_taken() -> None:
    assert follows([1, 2, 50, 0, 1, 2, 60, 0, 1, 2], 1) == [60]


def test_a_repetition_goes_on_for_ever() -> None:
    assert follows([7, 1, 2, 3, 1, 2, 3], 8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert follows([5, 5, 5], 4) == [5, 5, 5, 5]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 2], [1, 2, 1, 3]])
def test_nothing_is_proposed_where_nothing_matches(tokens: list[int]) -> None:
    assert index_of(tokens).propose(4) == ([], [])


def test_no_tokens_are_proposed_where_none_are_wanted() -> None:
    assert index_of([1, 2, 3, 1, 2]).propose(0) == ([], [])


def test_min_match_decides_what_is_a_match() -> None:
    tokens = [1, 2, 3, 4, 9, 3]
    assert index_of(tokens, 1).propose(1)[0] == [4]
    assert index_of(tokens, 2).propose(1)[0] == []
    with pytest.raises(ValueError, match="min_match must be 1 to 4, got 5"):
        SuffixIndex(5)


def test_confidence_rises_with_the_matched_length_and_falls_along_the_draft() -> None:
    text = list(range(100, 140))
    short = index_of([*text, 0, *text[18:20]]).propose(4)[1]
    long = index_of([*text, 0, *text[:20]]).propose(4)[1]
    assert long[0] > short[0]
    assert short == sorted(short, reverse=True)
    assert all(0 < each < 1 for each in (*short, *long))


def test_confidence_falls_where_earlier_places_went_on_differently() -> None:
    agreed = index_of([1, 2, 50, 0, 1, 2, 50, 3, 1, 2]).propose(1)
    disputed = index_of([1, 2, 60, 0, 1, 2, 50, 3, 1, 2]).propose(1)
    assert agreed[0] == disputed[0] == [50]
    assert agreed[1] > disputed[1]


def test_large_token_ids_do_not_collide() -> None:
    assert follows([300_000, 1, 2, 70_000, 9, 300_000, 1], 2) == [2, 70_000]


@given(texts, st.data())
def test_it_does_not_matter_in_which_portions_the_text_grows(
    tokens: list[int], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(tokens)))
    grown = index_of(tokens[:cut])
    grown.propose(3)
    grown.extend(tokens[cut:])
    assert len(grown) == len(tokens)
    assert grown.propose(5) == index_of(tokens).propose(5)


@given(texts)
def test_a_proposal_is_what_stood_behind_an_earlier_match(tokens: list[int]) -> None:
    proposed, confidences = index_of(tokens).propose(4)
    assert len(proposed) == len(confidences)
    places = [i for i in range(2, len(tokens)) if tokens[i - 2 : i] == tokens[-2:]]
    assert bool(proposed) == bool(places)
    if proposed:
        text = tokens + proposed
        assert any(text[i : i + 4] == proposed for i in places)
