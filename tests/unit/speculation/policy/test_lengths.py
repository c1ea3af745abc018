"""What each policy drafts and verifies, and that none oversteps its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.speculation.policy.acceptance import AcceptanceModel
from fjx.speculation.policy.cost import CostModel
from fjx.speculation.policy.lengths import (
    ConfidenceTrim,
    Faser,
    Fixed,
    LengthPolicy,
    MarginalGain,
    PerBatch,
    RequestView,
    RoundView,
    policy_by_name,
)

NAMES = ("off", "fixed:4", "batch", "confidence", "faser", "marginal")


def cost_of(seconds: Callable[[int], float]) -> CostModel:
    sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    model = CostModel(sizes)
    for _ in range(5):
        for size in sizes:
            model.observe(size, 0, seconds(size))
    return model


NEARLY_FLAT = cost_of(lambda rows: 0.02 + 1e-5 * rows)
"""Like a GPU that waits for its memory."""
STEEP = cost_of(lambda rows: 1e-3 * rows)
CHEAP = cost_of(lambda rows: 1e-4)
DEAR = cost_of(lambda rows: 0.1)


def round_of(count: int, most: int = 8, context: int = 101, **changes: object) -> RoundView:
    view = RoundView(
        requests=tuple(RequestView(key, most, context) for key in range(count)),
        other_rows=0,
        max_rows=1000,
        acceptance=AcceptanceModel(),
        target_cost=NEARLY_FLAT,
        draft_cost=CHEAP,
    )
    return replace(view, **changes)  # type: ignore[arg-type]


@st.composite
def rounds(draw: st.DrawFn) -> tuple[RoundView, list[list[float]]]:
    """Any round, with drafts that may be shorter or longer than allowed."""
    acceptance = AcceptanceModel()
    requests, confidences = [], []
    for key in range(draw(st.integers(0, 6))):
        requests.append(RequestView(key, draw(st.integers(0, 12)), draw(st.integers(1, 200))))
        confidences.append(draw(st.lists(st.floats(0, 1), max_size=13)))
        for drafted in draw(st.lists(st.integers(1, 12), max_size=4)):
            acceptance.observe(key, [0.5] * drafted, draw(st.integers(0, drafted)))
    view = RoundView(
        requests=tuple(requests),
        other_rows=draw(st.integers(0, 50)),
        max_rows=draw(st.integers(0, 40)),
        acceptance=acceptance,
        target_cost=draw(st.sampled_from([NEARLY_FLAT, STEEP, CostModel((2, 64), padded=True)])),
        draft_cost=draw(st.sampled_from([None, CHEAP, DEAR, CostModel((2, 64))])),
    )
    return view, confidences


@given(rounds(), st.sampled_from(NAMES))
def test_no_policy_oversteps_its_limits(
    case: tuple[RoundView, list[list[float]]], name: str
) -> None:
    view, confidences = case
    policy = policy_by_name(name)
    drafted, verified = policy.draft_lengths(view), policy.verify_lengths(view, confidences)
    assert len(drafted) == len(verified) == len(view.requests)
    for request, each, length, kept in zip(
        view.requests, confidences, drafted, verified, strict=True
    ):
        assert 0 <= length <= request.most
        assert 0 <= kept <= min(len(each), request.most)
    assert sum(verified) <= view.max_rows


@given(rounds(), st.sampled_from(NAMES))
def test_policies_are_pure(case: tuple[RoundView, list[list[float]]], name: str) -> None:
    view, confidences = case
    policy = policy_by_name(name)
    first = policy.draft_lengths(view), policy.verify_lengths(view, confidences)
    assert first == (policy.draft_lengths(view), policy.verify_lengths(view, confidences))


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_has_the_name_it_is_found_by(name: str) -> None:
    assert policy_by_name(name).name == name


@pytest.mark.parametrize("name", ["", "fixed", "fixed:", "fixed:0", "fixed:-1", "off:1", "magic"])
def test_an_unknown_name_is_answered_with_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match="off, fixed:K, batch, confidence, faser or marginal"):
        policy_by_name(name)


def test_off_neither_drafts_nor_verifies() -> None:
    policy = policy_by_name("off")
    assert policy.draft_lengths(round_of(2)) == [0, 0]
    assert policy.verify_lengths(round_of(2), [[0.9], [0.9]]) == [0, 0]


def test_fixed_drafts_the_same_for_all_as_far_as_rows_are_left() -> None:
    assert Fixed(5).draft_lengths(round_of(3)) == [5, 5, 5]
    assert Fixed(5).draft_lengths(round_of(3, most=2)) == [2, 2, 2]
    assert Fixed(5).draft_lengths(round_of(3, max_rows=8)) == [3, 3, 2]
    assert Fixed(5).verify_lengths(round_of(3), [[0.1] * 5, [], [0.1] * 2]) == [5, 0, 2]


@pytest.mark.parametrize(("count", "length"), [(1, 3), (64, 3), (65, 1), (128, 1), (129, 0)])
def test_per_batch_follows_its_table(count: int, length: int) -> None:
    assert PerBatch().draft_lengths(round_of(count)) == [length] * count


@pytest.mark.parametrize("policy", [ConfidenceTrim(), MarginalGain()])
def test_confident_drafts_are_verified_further_than_doubtful_ones(policy: LengthPolicy) -> None:
    view = round_of(2, target_cost=cost_of(lambda rows: 0.005 + 1e-3 * rows))
    sure, unsure = policy.verify_lengths(view, [[0.97] * 8, [0.3] * 8])
    assert sure > 4
    assert unsure == 0


@pytest.mark.parametrize("policy", [ConfidenceTrim(), MarginalGain()])
def test_a_full_batch_switches_verification_off(policy: LengthPolicy) -> None:
    view = round_of(64, target_cost=STEEP)
    assert sum(policy.verify_lengths(view, [[0.8] * 8] * 64)) == 0
    assert sum(policy.verify_lengths(replace(view, target_cost=NEARLY_FLAT), [[0.8] * 8] * 64)) > 64


def test_confidence_trim_drafts_a_fixed_length_and_obeys_its_threshold() -> None:
    assert ConfidenceTrim(6).draft_lengths(round_of(2, target_cost=STEEP)) == [6, 6]
    trimmed = ConfidenceTrim(8, threshold=0.4).verify_lengths(round_of(1), [[0.75] * 8])
    free = ConfidenceTrim(8).verify_lengths(round_of(1), [[0.75] * 8])
    assert 0 < trimmed[0] < free[0]


def test_marginal_drafts_longer_for_requests_that_accept_more() -> None:
    view = round_of(2, target_cost=cost_of(lambda rows: 0.01 + 5e-4 * rows))
    for _ in range(20):
        view.acceptance.observe(0, [0.7] * 6, 6)
        view.acceptance.observe(1, [0.7] * 6, 0)
    good, bad = MarginalGain().draft_lengths(view)
    assert good > bad + 2


def test_marginal_drafts_less_the_more_drafting_costs() -> None:
    cheap, dear = round_of(4), round_of(4, draft_cost=DEAR)
    assert MarginalGain().draft_lengths(cheap)[0] > 4
    assert MarginalGain().draft_lengths(dear) == [0] * 4


@pytest.mark.parametrize("draft_cost", [None, CostModel((2, 4))])
def test_marginal_drafts_all_it_may_where_drafting_is_free_or_never_timed(
    draft_cost: CostModel | None,
) -> None:
    lengths = MarginalGain().draft_lengths(round_of(4, most=5, draft_cost=draft_cost))
    assert lengths == [5] * 4


def test_marginal_goes_on_drafting_while_the_confidences_are_high() -> None:
    view = round_of(2, draft_cost=cost_of(lambda rows: 0.003), stops=True)
    assert MarginalGain().draft_lengths(view) == [8, 8]
    assert MarginalGain().continue_drafting(view, [[0.95], [0.95]])
    assert not MarginalGain().continue_drafting(view, [[0.05], [0.05]])
    assert not MarginalGain().continue_drafting(replace(view, draft_cost=DEAR), [[0.95], [0.95]])
    assert Fixed(3).continue_drafting(view, [[0.05], [0.05]])


def probed(view: RoundView, context: int) -> list[int]:
    """What is drafted and verified where neither pays."""
    requests = tuple(replace(each, context=context) for each in view.requests)
    view = replace(view, requests=requests, draft_cost=DEAR)
    lengths = MarginalGain().draft_lengths(view)
    drafts = [[0.1] * length for length in lengths]
    assert MarginalGain().verify_lengths(view, drafts) == lengths
    assert MarginalGain(probe_every=0).draft_lengths(view) == [0] * len(lengths)
    return lengths


def test_hopeless_requests_are_tried_again_now_and_then_in_turn() -> None:
    lengths = [probed(round_of(3, target_cost=STEEP), context) for context in range(400)]
    tried = [each for each in lengths if any(each)]
    assert len(tried) == 7
    assert all(sum(each) == 1 for each in tried)
    assert all(any(each[i] for each in tried) for i in range(3))


def test_what_a_step_without_drafts_costs_is_found_out() -> None:
    """Only steps with drafts were seen. Without drafts they would cost a twentieth."""
    drafted, target = [[0.95] * 8] * 4, CostModel((4, 16), padded=True)
    for _ in range(5):
        target.observe(16, 0, 0.02)
    lengths = []
    for context in range(2, 100):
        view = round_of(4, context=context, target_cost=target, draft_cost=None, max_rows=12)
        lengths.append(sum(MarginalGain().verify_lengths(view, drafted)))
        target.observe(4 + lengths[-1], 0, 0.02 if lengths[-1] else 0.001)
    assert lengths[:10] == [12] * 10
    assert sum(lengths[40:]) == 4  # a probe: one token each, in rows that padding pays for


def test_rows_that_padding_pays_for_are_tried_as_well() -> None:
    padded = CostModel((2, 8, 64), padded=True)
    for rows in (2, 8, 64) * 5:
        padded.observe(rows, 0, rows * 1e-3)
    assert probed(round_of(6, target_cost=padded), context=64).count(1) == 2
    assert probed(round_of(6, target_cost=padded, max_rows=1), context=64).count(1) == 1


def faser_round(accepted: int, drafted: int, times: int = 16, **changes: object) -> RoundView:
    view = round_of(1, most=10, **changes)  # type: ignore[arg-type]
    for _ in range(times):
        view.acceptance.observe(0, [0.5] * drafted, accepted)
    return view


def test_faser_drafts_longer_for_requests_that_accept_more() -> None:
    costs = {"target_cost": cost_of(lambda rows: 0.01 + 5e-4 * rows)}
    good = Faser().draft_lengths(faser_round(6, 6, **costs))
    bad = Faser().draft_lengths(faser_round(0, 6, **costs))
    assert good[0] >= 6
    assert bad[0] == 2


def test_faser_drafts_shorter_in_a_dearer_batch() -> None:
    flat = Faser().draft_lengths(faser_round(3, 6))
    steep = Faser().draft_lengths(faser_round(3, 6, target_cost=STEEP))
    assert steep[0] < flat[0]


def test_faser_turns_to_a_length_that_did_better_than_its_neighbours() -> None:
    view = faser_round(8, 8, times=8, target_cost=cost_of(lambda rows: 0.01 + 1e-3 * rows))
    for _ in range(8):
        view.acceptance.observe(0, [0.5] * 3, 0)
    assert Faser(optimism=0.0).draft_lengths(view)[0] >= 7


def test_faser_is_drawn_to_lengths_it_has_not_tried() -> None:
    view = faser_round(2, 4)
    bold, timid = Faser(optimism=4.0), Faser(optimism=0.0)
    assert abs(bold.draft_lengths(view)[0] - 4) > abs(timid.draft_lengths(view)[0] - 4)


def test_faser_stays_within_the_longest_draft_allowed() -> None:
    assert Faser().draft_lengths(round_of(2, most=1)) == [1, 1]
    assert max(Faser().draft_lengths(round_of(2, most=5))) <= 5
