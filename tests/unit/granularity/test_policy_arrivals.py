"""Rate and burstiness over windows of time."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.errors import UserError
from fjx.granularity.arrivals import SLOTS, ArrivalWindows, WindowFigures


def watched(times: list[float], seconds: float = 60.0, started: float = 0.0) -> ArrivalWindows:
    windows = ArrivalWindows(started, [seconds])
    for time in times:
        windows.record(time)
    return windows


def figures(times: list[float], now: float, seconds: float = 60.0) -> WindowFigures:
    (window,) = watched(times, seconds).observe(now)
    return window


def gamma_times(cv: float, rate: float, count: int) -> list[float]:
    shape = 1 / cv**2
    return list(np.cumsum(np.random.default_rng(0).gamma(shape, 1 / (rate * shape), count)))


def test_before_the_first_arrival_there_is_no_rate_and_no_burstiness() -> None:
    assert figures([], now=5.0) == WindowFigures(60.0, 0, 0.0, None)


@pytest.mark.parametrize("times", [[30.0], [30.0, 40.0]])
def test_one_or_two_arrivals_have_a_rate_but_no_coefficient_of_variation(
    times: list[float],
) -> None:
    window = figures(times, now=120.0, seconds=120.0)
    assert window.arrivals == len(times)
    assert window.rate == pytest.approx(len(times) / 120, rel=2 / SLOTS)
    assert window.cv is None


def test_arrivals_at_one_moment_have_no_coefficient_of_variation() -> None:
    assert figures([3.0] * 10, now=4.0).cv is None


def test_a_metronome_has_a_coefficient_of_variation_of_zero() -> None:
    window = figures([float(time) for time in range(200)], now=199.5)
    assert window.rate == pytest.approx(1.0, rel=2 / SLOTS)
    assert window.cv == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_the_coefficient_of_variation_of_drawn_arrivals_is_found_again(cv: float) -> None:
    times = gamma_times(cv, rate=20.0, count=40_000)
    window = figures(times, now=times[-1], seconds=times[-1])
    assert window.rate == pytest.approx(20.0, rel=0.05)
    assert window.cv == pytest.approx(cv, rel=0.05)


def test_each_window_sees_its_own_past() -> None:
    windows = ArrivalWindows(0.0, (10.0, 100.0))
    for time in range(30, 80):
        windows.record(float(time))
    short, long = windows.observe(110.0)
    assert (short.arrivals, short.rate, short.cv) == (0, 0.0, None)
    assert long.arrivals == 50
    assert long.rate == pytest.approx(0.5, rel=2 / SLOTS)


def test_a_window_that_is_not_full_yet_counts_the_time_since_the_start() -> None:
    windows = ArrivalWindows(1000.0, (10.0, 300.0))
    for i in range(60):
        windows.record(1000.0 + 0.5 * i)
    assert windows.observe(1030.0)[1].rate == 60 / 30


def test_the_first_arrivals_are_no_enormous_rate() -> None:
    windows = ArrivalWindows(0.0)
    windows.record(0.001)
    assert max(window.rate for window in windows.observe(0.002)) <= 0.11


def test_a_silence_counts_as_no_longer_than_the_window() -> None:
    short = figures([0.0, 100.0, 101.0], now=102.0)
    longer = figures([0.0, 100_000.0, 100_001.0], now=100_002.0)
    assert short.cv == pytest.approx(longer.cv)
    assert short.cv == pytest.approx(np.std([60.0, 1.0]) / np.mean([60.0, 1.0]))


def test_a_time_before_the_latest_counts_as_the_latest() -> None:
    assert figures([1.0, 5.0, 4.0], now=6.0) == figures([1.0, 5.0, 5.0], now=6.0)


def test_observing_changes_nothing() -> None:
    windows = watched([1.0, 2.0, 4.0])
    first = windows.observe(5.0)
    windows.observe(1000.0)
    assert windows.observe(5.0) == first


def test_memory_does_not_grow_with_the_number_of_arrivals() -> None:
    few = len(pickle.dumps(watched([0.6 * i for i in range(100)])))
    many = len(pickle.dumps(watched([0.001 * i for i in range(60_000)])))
    assert many < 1.5 * few


@pytest.mark.parametrize("windows", [[], [0.0], [60.0, 10.0], [10.0, 10.0], [float("nan")]])
def test_windows_that_do_not_grow_are_refused(windows: list[float]) -> None:
    with pytest.raises(UserError, match="windows must be growing numbers of seconds, got"):
        ArrivalWindows(0.0, windows)


@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=60),
    st.floats(0, 100),
    st.sampled_from([10.0, 60.0]),
)
def test_figures_are_those_of_a_list_of_arrivals_up_to_the_edge_of_the_window(
    gaps: list[float], after: float, seconds: float
) -> None:
    times = [float(time) for time in np.cumsum(gaps)]
    now = times[-1] + after
    window = figures(times, now, seconds)
    most = sum(time > now - seconds for time in times)
    least = sum(time > now - seconds * (1 - 1 / SLOTS) for time in times)
    assert least <= window.arrivals <= most + (now - seconds in times)
    intervals = [min(b - a, seconds) for a, b in pairwise(times)][-window.arrivals :]
    if window.arrivals and len(intervals) >= 2 and np.mean(intervals) > 1e-3:
        assert window.cv == pytest.approx(np.std(intervals) / np.mean(intervals), abs=1e-4)
