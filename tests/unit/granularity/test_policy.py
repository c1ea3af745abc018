"""When the policy changes the plan, and when it would rather not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fjx.errors import UserError
from fjx.granularity.ladder import Ladder
from fjx.granularity.observation import Observation
from fjx.granularity.policy import Decision, PolicyConfig, PolicyState, decide
from fjx.granularity.rung_scorers import FlexPipeRungScorer
from tests.unit.granularity.policy_cases import GIGABYTE, LADDER, rung, see

CONFIG = PolicyConfig()
QUICK = PolicyConfig(hold_observations=1, finer_hold_seconds=0.0, coarser_hold_seconds=0.0)
BUSY = 14.0
"""Requests a second that pipeline-2 serves and pipeline-1 does not."""


def follow(
    observations: list[Observation],
    config: PolicyConfig = CONFIG,
    state: PolicyState | None = None,
    ladder: Ladder = LADDER,
) -> list[Decision]:
    decisions: list[Decision] = []
    state = state or PolicyState()
    for observation in observations:
        decisions.append(decide(observation, state, ladder, config))
        state = decisions[-1].state
    return decisions


def reasons(decisions: list[Decision]) -> list[str]:
    return [each.reason for each in decisions]


def test_a_plan_that_serves_stays() -> None:
    decision = follow([see(rate=1.0)])[0]
    assert (decision.target, decision.reason) == (None, "steady")
    assert list(decision.scores) == ["pipeline-1", "pipeline-2", "pipeline-4"]
    assert decision.candidate is None


def test_a_finer_plan_is_ordered_when_it_was_better_for_long_enough() -> None:
    decisions = follow([see(now=now, rate=BUSY) for now in (0.0, 1.0, 1.9, 2.0)])
    assert reasons(decisions) == ["not_yet", "not_yet", "not_yet", "load"]
    assert [each.target for each in decisions] == [None, None, None, "pipeline-2"]


def test_seconds_alone_are_not_enough_observations() -> None:
    decisions = follow([see(now=now, rate=BUSY) for now in (0.0, 100.0, 200.0)])
    assert reasons(decisions) == ["not_yet", "not_yet", "load"]


def test_one_calm_observation_begins_the_wait_anew() -> None:
    rates = [BUSY, BUSY, 1.0, BUSY, BUSY, BUSY]
    decisions = follow([see(now=3.0 * i, rate=rate) for i, rate in enumerate(rates)])
    assert reasons(decisions) == ["not_yet", "not_yet", "steady", "not_yet", "not_yet", "load"]


def test_rungs_that_take_turns_in_being_best_do_not_begin_the_wait_anew() -> None:
    rates = [BUSY, 30.0, BUSY, 30.0]
    decisions = follow([see(now=0.7 * i, rate=rate) for i, rate in enumerate(rates)])
    assert [each.candidate for each in decisions[:3]] == ["pipeline-2", "pipeline-4", "pipeline-2"]
    assert decisions[3].target == "pipeline-4"


def test_a_coarser_plan_has_to_wait_longer() -> None:
    quiet = [see(now=now, serving="pipeline-4", rate=1.0) for now in (0.0, 30.0, 59.0, 60.0)]
    decisions = follow(quiet)
    assert reasons(decisions) == ["not_yet", "not_yet", "not_yet", "quiet"]
    assert decisions[-1].target == "pipeline-1"


def test_a_rung_that_is_better_by_less_than_the_margin_is_not_better() -> None:
    seen = see(serving="pipeline-2", rate=1.0)
    scores = follow([seen])[0].scores
    advantage = scores["pipeline-1"] / scores["pipeline-2"] - 1
    assert reasons(follow([seen], replace(QUICK, margin=advantage * 1.01))) == ["steady"]
    assert reasons(follow([seen], replace(QUICK, margin=advantage * 0.99))) == ["quiet"]


def ordered(now: float = 0.0) -> Decision:
    """The order to go from pipeline-1 to pipeline-2."""
    decision = decide(see(now=now, rate=BUSY), PolicyState(), LADDER, QUICK)
    assert decision.target == "pipeline-2"
    return decision


def test_while_a_change_is_under_way_nothing_is_decided() -> None:
    under_way = [see(now=now, rate=30.0, switching=True) for now in (1.0, 2.0, 500.0)]
    decisions = follow(under_way, QUICK, ordered().state)
    assert reasons(decisions) == ["switching"] * 3
    assert decisions[-1].state.pending == "pipeline-2"


def test_after_a_change_the_policy_cools_down_before_it_gives_devices_back() -> None:
    after = [see(now=now, serving="pipeline-2", rate=1.0) for now in (10.0, 39.0, 40.0)]
    decisions = follow(after, QUICK, ordered().state)
    assert reasons(decisions) == ["cooling_down", "cooling_down", "quiet"]
    assert decisions[-1].target == "pipeline-1"


def test_where_the_first_step_was_too_small_the_next_one_waits_for_its_hold_only() -> None:
    after = [see(now=now, serving="pipeline-2", rate=30.0) for now in (10.0, 11.0, 12.0)]
    decisions = follow(after, CONFIG, ordered().state)
    assert reasons(decisions) == ["not_yet", "not_yet", "load"]
    assert decisions[-1].target == "pipeline-4"


def test_after_an_aborted_change_it_cools_down_for_longer() -> None:
    still = [see(now=now, rate=30.0) for now in (10.0, 129.0, 130.0)]
    decisions = follow(still, QUICK, ordered().state)
    # To pipeline-4, because pipeline-2 is the one that was aborted.
    assert decisions[0].candidate == "pipeline-4"
    assert reasons(decisions) == ["cooling_down", "cooling_down", "load"]


def test_the_rung_of_aborted_changes_is_left_alone_for_twice_as_long_each_time() -> None:
    two = Ladder(LADDER.rungs[:2])
    state, waits = PolicyState(), []
    aborted_at = None
    for now in range(2000):
        # Whatever is ordered has failed by the next observation.
        decision = decide(see(now=float(now), rate=BUSY), state, two, QUICK)
        if decision.target is not None:
            if aborted_at is not None:
                waits.append(now - aborted_at)
            aborted_at = now + 1
        state = decision.state
        assert decision.reason in ("load", "backing_off", "cooling_down")
    assert waits == [120, 240, 480, 960]


def test_backing_off_ends_at_its_limit() -> None:
    config = replace(QUICK, longest_backoff_seconds=200.0)
    two = Ladder(LADDER.rungs[:2])
    state, orders = PolicyState(), []
    for now in range(1000):
        decision = decide(see(now=float(now), rate=BUSY), state, two, config)
        orders += [now] * (decision.target is not None)
        state = decision.state
    assert orders == [0, 121, 322, 523, 724, 925]


def test_a_change_that_is_done_forgets_the_aborted_ones() -> None:
    aborted = decide(see(now=1.0, rate=BUSY), ordered().state, LADDER, QUICK)
    assert [each.rung for each in aborted.state.backoffs] == ["pipeline-2"]
    # Someone brings the plan there all the same.
    done = decide(see(now=2.0, serving="pipeline-2", rate=BUSY), aborted.state, LADDER, QUICK)
    assert done.state.backoffs == ()


def test_a_plan_that_someone_else_chose_is_kept_for_the_cool_down() -> None:
    calm = [see(now=0.0, rate=1.0), see(now=1.0, serving="pipeline-4", rate=1.0)]
    later = [see(now=now, serving="pipeline-4", rate=1.0) for now in (30.0, 31.0)]
    assert reasons(follow(calm + later, QUICK)) == [
        "steady",
        "cooling_down",
        "cooling_down",
        "quiet",
    ]


def test_nor_is_a_finer_one_taken_at_once_after_someone_elses_order() -> None:
    began = see(now=0.0, serving="pipeline-1", rate=1.0)
    busy = [see(now=now, serving="pipeline-2", rate=30.0) for now in (1.0, 30.0, 31.0)]
    decisions = follow([began, *busy], QUICK)
    assert reasons(decisions) == ["steady", "cooling_down", "cooling_down", "load"]


def test_a_plan_that_is_no_rung_is_not_touched() -> None:
    decisions = follow([see(now=float(now), serving=None, rate=30.0) for now in range(100)], QUICK)
    assert set(reasons(decisions)) == {"off_ladder"}


def test_a_change_that_costs_more_than_it_gains_is_left() -> None:
    seen = see(rate=BUSY)
    cheap = decide(seen, PolicyState(), LADDER, QUICK)
    # 2 GB a second: one second of copying at a loss of 20 %, and a pause.
    fast = replace(QUICK, copy_bytes_per_second=2.0 * GIGABYTE)
    assert decide(seen, PolicyState(), LADDER, fast).cost_seconds == pytest.approx(0.2 + 0.1)
    assert cheap.gain_seconds is not None
    assert cheap.gain_seconds == pytest.approx(
        (1 - cheap.scores["pipeline-1"] / cheap.scores["pipeline-2"]) * (300 - 2)
    )
    slow = replace(QUICK, copy_bytes_per_second=0.01 * GIGABYTE)
    costly = decide(seen, PolicyState(), LADDER, slow)
    assert (costly.target, costly.reason, costly.candidate) == (None, "too_costly", "pipeline-2")
    assert costly.gain_seconds is not None
    assert costly.cost_seconds is not None
    assert costly.gain_seconds <= costly.cost_seconds


def test_of_two_better_rungs_the_cheaper_one_to_reach_wins_if_they_are_nearly_as_good() -> None:
    moved = dict(LADDER.switch_bytes) | {("pipeline-1", "pipeline-2"): 200 * GIGABYTE}
    dear = Ladder(LADDER.rungs, moved)
    seen = see(rate=BUSY)
    assert decide(seen, PolicyState(), LADDER, QUICK).target == "pipeline-2"
    assert decide(seen, PolicyState(), dear, QUICK).target == "pipeline-4"


def test_the_policy_works_with_flexpipes_scorer() -> None:
    config = replace(QUICK, scorer=FlexPipeRungScorer())
    decision = decide(see(rate=1.0, cv=12.0), PolicyState(), LADDER, config)
    assert (decision.target, decision.reason) == ("pipeline-2", "burst")
    far = decide(see(rate=1.0, cv=1e6), PolicyState(), LADDER, config)
    assert (far.target, far.reason) == (None, "steady")


def test_the_same_numbers_give_the_same_decision_and_change_none_of_them() -> None:
    state = PolicyState(serving="pipeline-1")
    seen = see(rate=BUSY)
    first = decide(seen, state, LADDER, CONFIG)
    assert decide(seen, state, LADDER, CONFIG) == first
    assert state == PolicyState(serving="pipeline-1")


def test_a_rung_that_the_ladder_does_not_have_is_an_error() -> None:
    with pytest.raises(UserError, match="the ladder has no rung 'pipeline-9'; it has pipeline-1,"):
        decide(see(serving="pipeline-9"), PolicyState(), LADDER, CONFIG)


def test_a_ladder_of_one_rung_stays() -> None:
    decisions = follow([see(rate=1000.0, kv_usage=1.0)], QUICK, ladder=Ladder((rung(1),)))
    assert reasons(decisions) == ["steady"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("margin", -0.1),
        ("hold_observations", 0),
        ("cooldown_seconds", float("inf")),
        ("horizon_seconds", 0),
        ("copy_slowdown", 1.5),
        ("pause_seconds", None),
    ],
)
def test_a_configuration_names_the_field_that_is_wrong(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"PolicyConfig: {name} must be a finite number"):
        PolicyConfig(**{name: value})  # type: ignore[arg-type]
