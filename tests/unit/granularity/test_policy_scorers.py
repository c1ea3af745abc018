"""What scorers prefer, and that they prefer it the more, the more there is reason to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.errors import UserError
from fjx.granularity.ladder import Ladder
from fjx.granularity.observation import Observation
from fjx.granularity.rung_scorers import FlexPipeRungScorer, RungScorer, ServiceScorer
from tests.unit.granularity.policy_cases import LADDER, ladders, observations, positive, rung, see

SERVICE = ServiceScorer()


def favourite(
    observation: Observation, ladder: Ladder = LADDER, scorer: RungScorer = SERVICE
) -> str:
    return max(ladder.rungs, key=lambda each: scorer.score(each, observation, ladder)).name


def why(observation: Observation, target: str, scorer: RungScorer = SERVICE) -> str:
    assert observation.serving is not None
    serving = LADDER.rung(observation.serving)
    return scorer.reason(serving, LADDER.rung(target), observation, LADDER)


def with_windows(observation: Observation, **figures: float) -> Observation:
    windows = tuple(replace(each, **figures) for each in observation.windows)  # type: ignore[arg-type]
    return replace(observation, windows=windows)


def never_favours_less(
    ladder: Ladder,
    calm: Observation,
    pressed: Observation,
    supply: Callable[[object], float],
) -> None:
    """Check that pressure does not make a rung of less supply look better against one of more."""
    for less in ladder.rungs:
        for more in ladder.rungs:
            if supply(less) < supply(more):
                before = SERVICE.score(less, calm, ladder) / SERVICE.score(more, calm, ladder)
                after = SERVICE.score(less, pressed, ladder) / SERVICE.score(more, pressed, ladder)
                assert after <= before * (1 + 1e-9)


def throughput(rung: object) -> float:
    return rung.tokens_per_second  # type: ignore[attr-defined,no-any-return]


def kv_room(rung: object) -> float:
    return rung.kv_tokens  # type: ignore[attr-defined,no-any-return]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Ladder, Observation]:
    ladder = draw(ladders())
    return ladder, draw(observations(ladder))


@given(cases(), positive(1, 100))
def test_a_higher_rate_never_favours_a_slower_rung(
    case: tuple[Ladder, Observation], factor: float
) -> None:
    ladder, calm = case
    rates = [each.rate * factor for each in calm.windows]
    windows = [replace(w, rate=r) for w, r in zip(calm.windows, rates, strict=True)]
    never_favours_less(ladder, calm, replace(calm, windows=tuple(windows)), throughput)


@given(cases(), st.integers(0, 1000))
def test_a_longer_queue_never_favours_a_slower_rung(
    case: tuple[Ladder, Observation], more: int
) -> None:
    ladder, calm = case
    longer = replace(calm, queue_depth=calm.queue_depth + more)
    never_favours_less(ladder, calm, longer, throughput)


@given(cases(), positive(0, 30), positive(0, 30))
def test_more_burstiness_never_favours_a_slower_rung(
    case: tuple[Ladder, Observation], one: float, other: float
) -> None:
    ladder, seen = case
    calm, bursty = (with_windows(seen, cv=cv) for cv in sorted((one, other)))
    never_favours_less(ladder, calm, bursty, throughput)


@given(cases(), positive(0, 1), positive(0, 1), st.integers(0, 10))
def test_more_kv_pressure_never_favours_a_rung_with_less_room(
    case: tuple[Ladder, Observation], one: float, other: float, preemptions: int
) -> None:
    ladder, seen = case
    low, high = sorted((one, other))
    calm = replace(seen, kv_usage=low)
    pressed = replace(seen, kv_usage=high, preemptions=seen.preemptions + preemptions)
    never_favours_less(ladder, calm, pressed, kv_room)


@given(cases(), positive(0, 30), positive(0, 30))
def test_measured_lateness_never_favours_a_slower_rung(
    case: tuple[Ladder, Observation], one: float, other: float
) -> None:
    ladder, seen = case
    timely, late = (replace(seen, ttft_seconds=each) for each in sorted((one, other)))
    never_favours_less(ladder, timely, late, throughput)


@given(ladders(), st.data())
def test_when_it_is_quiet_the_fewest_devices_that_meet_the_objective_are_best(
    ladder: Ladder, data: st.DataObject
) -> None:
    coarsest = replace(ladder.rungs[0], latency_seconds=0.2)
    rungs = [coarsest]
    for each in ladder.rungs[1:]:
        # N times the devices may divide the latency by N at best.
        best = coarsest.latency_seconds * coarsest.devices / each.devices
        rungs.append(replace(each, latency_seconds=data.draw(positive(best, 1.0))))
    quiet = Ladder(tuple(rungs))
    scorer = ServiceScorer(itl_objective_seconds=data.draw(positive(0.2, 1.0)))
    serving = data.draw(st.sampled_from(rungs)).name
    assert favourite(see(serving=serving), quiet, scorer) == coarsest.name


@given(cases())
def test_terms_lie_between_0_and_1_and_their_product_is_the_score(
    case: tuple[Ladder, Observation],
) -> None:
    ladder, seen = case
    for scorer in (SERVICE, FlexPipeRungScorer()):
        for each in ladder.rungs:
            terms = scorer.terms(each, seen, ladder)
            assert all(0 <= term <= 1 for term in terms.values())
            assert scorer.score(each, seen, ladder) == math.prod(terms.values())


def test_a_rung_is_chosen_that_serves_the_rate_and_no_larger_one() -> None:
    # A request has 100 tokens; the rungs do 1000, 2000 and 4000 a second.
    assert favourite(see(rate=5.0)) == "pipeline-1"
    assert favourite(see(rate=14.0)) == "pipeline-2"
    assert favourite(see(rate=30.0)) == "pipeline-4"


def test_a_rung_that_was_too_slow_is_not_good_again_at_the_next_small_fall() -> None:
    between = 8.5
    assert favourite(see(serving="pipeline-1", rate=between)) == "pipeline-1"
    assert favourite(see(serving="pipeline-2", rate=between)) == "pipeline-2"
    assert favourite(see(serving="pipeline-2", rate=between / 1.25)) == "pipeline-1"


def test_each_kind_of_pressure_asks_for_a_finer_rung_and_says_why() -> None:
    rate = see(rate=14.0)
    burst = see(rate=5.0, cv=8.0)
    queue = see(rate=5.0, queue_depth=100)
    late = see(rate=7.0, ttft_seconds=9.0)
    full = see(rate=1.0, kv_usage=0.95)
    cases = {"load": rate, "burst": burst, "queue": queue, "latency": late, "kv_pressure": full}
    for reason, seen in cases.items():
        assert favourite(seen) != "pipeline-1", reason
        assert why(seen, "pipeline-2") == reason


def test_a_rung_of_fewer_hops_is_chosen_where_tokens_come_too_slowly() -> None:
    slow = Ladder((rung(1), rung(2), rung(4, latency_seconds=0.5)))
    seen = see(serving="pipeline-4", rate=14.0)
    assert favourite(seen, slow) == "pipeline-2"
    serving, target = slow.rung("pipeline-4"), slow.rung("pipeline-2")
    assert SERVICE.reason(serving, target, seen, slow) == "latency"


def test_coarser_is_for_quiet() -> None:
    assert why(see(serving="pipeline-4", rate=1.0), "pipeline-1") == "quiet"


def test_a_latency_that_the_stages_explain_is_not_lateness() -> None:
    ladder = Ladder((rung(1), rung(2, latency_seconds=1.0)))
    seen = see(serving="pipeline-2", rate=5.0, itl_seconds=1.0)
    on_time = replace(seen, itl_seconds=None)
    assert SERVICE.demand(seen, ladder) == SERVICE.demand(on_time, ladder)
    assert SERVICE.demand(replace(seen, itl_seconds=1.5), ladder) > SERVICE.demand(seen, ladder)


def test_sustained_throughput_keeps_kingmans_mean_wait_at_the_objective() -> None:
    seen = see(cv=4.0)
    each = LADDER.rung("pipeline-2")
    utilization = SERVICE.sustained(each, seen) / each.tokens_per_second
    service = 100 / each.tokens_per_second
    wait = utilization / (1 - utilization) * (4.0**2 + 1) / 2 * service
    assert wait == pytest.approx(SERVICE.ttft_objective_seconds)


REPLICAS = Ladder(
    tuple(
        rung(each, latency_seconds=0.2, idle_latency_seconds=0.1, tokens_per_second=1000.0 * each)
        for each in (1, 2, 4)
    )
)
"""As replicas of one plan: twice the devices do twice the tokens, none of them any sooner."""


def test_an_objective_between_the_idle_and_the_full_latency_is_met_by_more_devices() -> None:
    seen = see(rate=8.0)  # of the 10 that the coarsest rung serves
    assert favourite(seen, REPLICAS, ServiceScorer(itl_objective_seconds=0.2)) == "pipeline-1"
    assert favourite(seen, REPLICAS, ServiceScorer(itl_objective_seconds=0.15)) == "pipeline-2"
    assert favourite(seen, REPLICAS, ServiceScorer(itl_objective_seconds=0.12)) == "pipeline-4"


def test_an_objective_that_an_idle_rung_misses_takes_no_devices() -> None:
    assert favourite(see(rate=4.0), REPLICAS, ServiceScorer(itl_objective_seconds=0.05)) == (
        "pipeline-1"
    )


@given(observations(REPLICAS), positive(0, 50), positive(0, 50), positive(0.01, 1.0))
def test_with_objectives_between_a_higher_rate_still_never_favours_fewer_replicas(
    seen: Observation, one: float, other: float, objective: float
) -> None:
    scorer = ServiceScorer(itl_objective_seconds=objective)
    low, high = (with_windows(seen, rate=rate) for rate in sorted((one, other)))
    for less, more in itertools.combinations(REPLICAS.rungs, 2):
        before, after = (
            scorer.score(less, each, REPLICAS) / scorer.score(more, each, REPLICAS)
            for each in (low, high)
        )
        assert after <= before * (1 + 1e-9)


def test_flexpipe_scores_by_equation_4() -> None:
    scorer = FlexPipeRungScorer(alpha=0.25, sigma=4.0)
    two = LADDER.rung("pipeline-2")  # 2000 of 4000 tokens a second, 0.044 s, best at 12
    expected = (0.25 * 0.5 + 0.75 * 0.042 / 0.044) * math.exp(-(12.0 - 5.0) / 4.0)
    assert scorer.score(two, see(cv=5.0), LADDER) == pytest.approx(expected)


def test_flexpipe_goes_by_burstiness_alone() -> None:
    scorer = FlexPipeRungScorer()
    assert favourite(see(cv=1.0), scorer=scorer) == "pipeline-1"
    assert favourite(see(cv=12.0), scorer=scorer) == "pipeline-2"
    assert favourite(see(cv=50.0), scorer=scorer) == "pipeline-4"
    busy = see(cv=1.0, rate=1000.0, queue_depth=1000, kv_usage=1.0, ttft_seconds=100.0)
    assert favourite(busy, scorer=scorer) == "pipeline-1"
    assert why(see(cv=12.0), "pipeline-2", scorer) == "burst"
    assert why(see(serving="pipeline-2", cv=1.0), "pipeline-1", scorer) == "quiet"


@pytest.mark.parametrize(
    ("scorer", "fields", "message"),
    [
        (
            FlexPipeRungScorer,
            {"alpha": 1.5},
            "alpha must be a finite number of at least 0 and at most",
        ),
        (FlexPipeRungScorer, {"sigma": 0}, "sigma must be a finite number above 0, got 0"),
        (ServiceScorer, {"headroom": 0.9}, "headroom must be a finite number of at least 1, got"),
        (ServiceScorer, {"kv_target": 1.2}, "kv_target must be a finite number above 0 and at"),
        (ServiceScorer, {"drain_seconds": "10"}, "drain_seconds must be .* above 0, got '10'"),
        (ServiceScorer, {"device_weight": -1}, "device_weight must be .* of at least 0 and at"),
    ],
)
def test_a_scorer_names_the_field_that_is_wrong(
    scorer: Callable[..., object], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        scorer(**fields)


@pytest.mark.parametrize(
    ("name", "value"), [("kv_usage", 1.1), ("queue_depth", -1), ("ttft_seconds", math.inf)]
)
def test_an_observation_names_the_number_that_is_wrong(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"observation: {name} must be a finite number of at least"):
        see(**{name: value})
