"""What acceptance statistics promise, and how they follow what is observed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.speculation.policy.acceptance import AcceptanceModel

confidence_lists = st.lists(st.floats(0, 1), max_size=12)
histories = st.lists(st.tuples(st.integers(0, 3), confidence_lists, st.floats(0, 1)), max_size=30)


def verify(
    model: AcceptanceModel, random: np.random.Generator, key: str, truth: list[float], sure: float
) -> None:
    """Draft as many tokens as ``truth`` has, each accepted with its probability."""
    hits = [bool(random.random() < share) for share in truth]
    accepted = sum(itertools.takewhile(bool, hits))
    model.propose(key, [sure] * len(truth))
    model.observe(key, [sure] * len(truth), accepted)


@given(histories, confidence_lists)
def test_survival_is_a_running_product_of_probabilities(
    history: list[tuple[int, list[float], float]], confidences: list[float]
) -> None:
    model = AcceptanceModel()
    for key, drafted, share in history:
        model.observe(key, drafted, int(share * len(drafted)))
    for survival in (model.survival(0, confidences), model.expected(0, len(confidences))):
        assert len(survival) == len(confidences)
        for before, after in itertools.pairwise((1.0, *survival)):
            assert 0.01 * before <= after * (1 + 1e-9)
            assert after <= 0.99 * before * (1 + 1e-9)


def test_unobserved_confidences_are_taken_at_their_word() -> None:
    sure, unsure = (
        AcceptanceModel().survival("new", [0.92]),
        AcceptanceModel().survival("new", [0.3]),
    )
    assert sure[0] == pytest.approx(0.925, abs=0.05)
    assert unsure[0] == pytest.approx(0.3, abs=0.06)


def test_a_boastful_drafter_is_seen_through() -> None:
    model, random = AcceptanceModel(), np.random.default_rng(0)
    for i in range(1000):
        verify(model, random, f"request {i}", [0.5, 0.3], sure=0.97)
        verify(model, random, f"request {i}", [0.2], sure=0.35)
    boastful, modest = model.survival("new", [0.97, 0.97]), model.survival("new", [0.35])
    assert boastful[0] == pytest.approx(0.5, abs=0.06)
    assert boastful[1] / boastful[0] == pytest.approx(0.3, abs=0.06)
    assert modest[0] == pytest.approx(0.2, abs=0.05)


def test_what_is_learned_at_one_position_helps_at_those_that_are_seldom_reached() -> None:
    model, random = AcceptanceModel(), np.random.default_rng(0)
    for i in range(500):
        verify(model, random, f"request {i}", [0.5], sure=0.97)
    deep = model.survival("new", [0.97] * 6)
    assert deep[5] / deep[4] < 0.7


def test_a_position_after_a_rejection_counts_as_unobserved() -> None:
    short, long = AcceptanceModel(), AcceptanceModel()
    for _ in range(50):
        short.observe("a", [0.9, 0.9], 1)
        long.observe("a", [0.9, 0.9, 0.9, 0.9], 1)
    assert short.survival("b", [0.9] * 4) == long.survival("b", [0.9] * 4)


def test_requests_differ_at_the_same_confidence() -> None:
    model = AcceptanceModel()
    for _ in range(20):
        model.observe("good", [0.8, 0.8, 0.8], 3)
        model.observe("bad", [0.8, 0.8, 0.8], 0)
        good, bad, other = (model.survival(key, [0.8])[0] for key in ("good", "bad", "other"))
    assert bad < 0.25
    assert 0.4 < other < 0.6
    assert good > 0.75
    assert (
        model.expected("bad", 3)[2] < model.expected("other", 3)[2] < model.expected("good", 3)[2]
    )


def test_one_draft_says_little_about_a_request() -> None:
    model = AcceptanceModel()
    before = model.survival("unlucky", [0.9])[0]
    model.observe("unlucky", [0.9], 0)
    assert before - model.survival("unlucky", [0.9])[0] < 0.2


def test_unsure_drafts_lower_what_a_request_expects() -> None:
    """Its tokens are as good as their confidences say, but these are low."""
    model, random = AcceptanceModel(), np.random.default_rng(0)
    for _ in range(300):
        verify(model, random, "sure", [0.95] * 4, sure=0.96)
        verify(model, random, "unsure", [0.25] * 4, sure=0.25)
    assert model.expected("unsure", 1)[0] < 0.5 < model.expected("sure", 1)[0]
    assert model.survival("unsure", [0.96])[0] > 0.9


def test_a_request_that_changes_is_followed() -> None:
    model = AcceptanceModel()
    for _ in range(100):
        model.observe("a", [0.8], 1)
    for _ in range(100):
        model.observe("a", [0.8], 0)
    assert model.survival("a", [0.8])[0] < 0.5


def test_a_forgotten_request_is_like_a_new_one() -> None:
    model = AcceptanceModel()
    for _ in range(20):
        model.observe("a", [0.8], 0)
    model.forget("a")
    model.forget("never seen")
    assert model.survival("a", [0.8]) == model.survival("new", [0.8])
    assert model.recent("a") == ()


def test_recent_drafts_are_kept_in_order() -> None:
    model = AcceptanceModel()
    for length in range(1, 41):
        model.observe("a", [0.5] * length, length // 2)
    model.observe("a", [], 0)
    assert model.recent("a") == tuple((length, length // 2) for length in range(9, 41))


@pytest.mark.parametrize("accepted", [-1, 3])
def test_more_accepted_tokens_than_drafted_ones_are_refused(accepted: int) -> None:
    with pytest.raises(ValueError, match="accepted must be 0 to 2"):
        AcceptanceModel().observe("a", [0.5, 0.5], accepted)
