"""Over noisy arrivals, patience makes changes few."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fjx.bench.traces import read_trace
from fjx.granularity.arrivals import ArrivalWindows
from fjx.granularity.observation import Observation
from fjx.granularity.policy import PolicyConfig, PolicyState, decide
from fjx.granularity.rung_scorers import FlexPipeRungScorer, ServiceScorer
from tests.unit.granularity.policy_cases import LADDER

TRACE = Path(__file__).parents[3] / "../shared/data/traces/azure_llm_2023_code_first_half.csv"
TOKENS = 100.0
"""Of each request."""


def drawn(cv: float, rate: float, seconds: float, seed: int = 0) -> list[float]:
    shape = 1 / cv**2
    count = int(2 * rate * seconds) + 1000
    gaps = np.random.default_rng(seed).gamma(shape, 1 / (rate * shape), count)
    return [float(time) for time in np.cumsum(gaps) if time < seconds]


IMPATIENT = PolicyConfig(
    scorer=ServiceScorer(headroom=1.0),
    margin=0.0,
    hold_observations=1,
    finer_hold_seconds=0.0,
    coarser_hold_seconds=0.0,
    cooldown_seconds=0.0,
    pause_seconds=0.0,
    copy_slowdown=0.0,
)


def serve(arrivals: list[float], config: PolicyConfig, seconds: int) -> list[tuple[int, str]]:
    """Serve arrivals as fast as the rung allows, first come first served, with an observation each
    second; a change takes three seconds.

    Returns:
        The changes: when they were ordered, and to which rung.
    """
    windows, state = ArrivalWindows(0.0), PolicyState()
    serving, target, until = "pipeline-1", None, 0
    waiting, changes = 0.0, []
    for now in range(1, seconds + 1):
        new = arrivals[bisect_right(arrivals, now - 1) : bisect_right(arrivals, now)]
        for time in new:
            windows.record(time)
        rung = LADDER.rung(serving)
        waiting = max(0.0, waiting + len(new) * TOKENS - rung.tokens_per_second)
        if target is not None and now >= until:
            serving, target = target, None
        observation = Observation(
            now=float(now),
            serving=serving,
            switching=target is not None,
            windows=windows.observe(float(now)),
            queue_depth=int(waiting / TOKENS),
            kv_usage=min(1.0, (len(new) * TOKENS + waiting) / rung.kv_tokens),
            tokens_per_request=TOKENS,
        )
        decision = decide(observation, state, LADDER, config)
        state = decision.state
        if decision.target is not None:
            target, until = decision.target, now + 3
            changes.append((now, target))
    return changes


@pytest.mark.parametrize(("cv", "most"), [(1.0, 2), (8.0, 6)])
@pytest.mark.parametrize("seed", [0, 1])
def test_changes_are_few_where_a_policy_without_patience_flaps(
    cv: float, most: int, seed: int
) -> None:
    # The mean rate lies where pipeline-1 is about as good as pipeline-2.
    arrivals = drawn(cv, 8.5, 1800.0, seed)
    patient = serve(arrivals, PolicyConfig(), 1800)
    flapping = serve(arrivals, IMPATIENT, 1800)
    assert len(patient) <= most
    assert len(flapping) > 50


def test_flexpipes_scorer_flaps_too_without_patience() -> None:
    arrivals = drawn(8.0, 8.5, 3600.0)
    patient = serve(arrivals, PolicyConfig(scorer=FlexPipeRungScorer()), 3600)
    flapping = serve(arrivals, replace(IMPATIENT, scorer=FlexPipeRungScorer()), 3600)
    assert len(patient) < len(flapping)


def test_a_rise_of_the_load_is_followed_up_and_down_once() -> None:
    calm, busy = drawn(1.0, 3.0, 600.0), drawn(1.0, 14.0, 600.0, seed=1)
    arrivals = calm + [600.0 + time for time in busy] + [1200.0 + time for time in calm]
    changes = serve(arrivals, PolicyConfig(), 1800)
    up, down = changes
    assert up[1] == "pipeline-2"
    assert 600 <= up[0] <= 660
    assert down[1] == "pipeline-1"
    assert 1200 <= down[0] <= 1600


@pytest.mark.skipif(not TRACE.is_file(), reason=f"{TRACE.name} is not there: see ../shared/data")
def test_over_a_real_trace_of_bursts_changes_are_few_and_devices_are_kept_for_a_while() -> None:
    arrivals = [entry.arrival for entry in read_trace(TRACE)]
    seconds = int(arrivals[-1])
    patient = serve(arrivals, PolicyConfig(), seconds)
    flapping = serve(arrivals, IMPATIENT, seconds)
    config = PolicyConfig()
    for (at, before), (then, after) in pairwise(patient):
        coarser = LADDER.position(after) < LADDER.position(before)
        least = config.cooldown_seconds if coarser else config.finer_hold_seconds
        assert then - at >= least
    assert 2 <= len(patient) <= seconds / 120
    assert len(flapping) > 5 * len(patient)
