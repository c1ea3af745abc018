import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.bench.arrivals import arrival_times


@settings(max_examples=30)
@given(
    rate=st.floats(0.1, 100.0),
    burstiness=st.floats(0.2, 20.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_intervals_have_the_requested_rate_and_burstiness(
    rate: float, burstiness: float, seed: int
) -> None:
    times = np.array(arrival_times(20_000, rate, burstiness, seed))
    intervals = np.diff(times, prepend=0.0)
    assert (intervals >= 0).all()
    assert intervals.mean() == pytest.approx(1 / rate, rel=1e-6)
    assert intervals.std() / intervals.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.15)


def test_an_infinite_rate_sends_all_requests_at_once() -> None:
    assert arrival_times(3, math.inf, 1.0, 0) == [0.0, 0.0, 0.0]


def test_the_seed_fixes_the_times() -> None:
    assert arrival_times(50, 2.0, 0.5, 7) == arrival_times(50, 2.0, 0.5, 7)
    assert arrival_times(50, 2.0, 0.5, 7) != arrival_times(50, 2.0, 0.5, 8)


def test_no_requests_have_no_times() -> None:
    assert arrival_times(0, 2.0, 1.0, 0) == []


def test_extreme_burstiness_is_one_burst_and_not_a_division_by_zero() -> None:
    assert all(math.isfinite(t) for t in arrival_times(2, 1.0, 1e-6, 0))
