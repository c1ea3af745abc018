"""The scales of charts: round ticks that cover the values, whatever these are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.plots.ticks import Scale, log_scale, round_step, scale_to, time_unit

POSITIVE = st.floats(1e-12, 1e12)


def is_round(value: float) -> bool:
    mantissa = value / 10 ** math.floor(math.log10(value) + 1e-9)
    return any(mantissa == pytest.approx(each) for each in (1, 2, 5))


@given(POSITIVE, st.integers(1, 12), st.booleans())
def test_ticks_are_round_and_cover_the_values(high: float, most: int, exact: bool) -> None:
    scale = scale_to(high, most=most, exact=exact)
    step = round_step(high / most)
    assert is_round(step)
    assert scale.ticks == pytest.approx([step * i for i in range(len(scale.ticks))])
    assert len(scale.ticks) <= most + 1
    assert scale.high == (high if exact else scale.ticks[-1])
    assert scale.high >= high * (1 - 1e-9)
    assert scale.ticks[-1] <= scale.high * (1 + 1e-9)


@given(POSITIVE, st.integers(1, 12))
def test_labels_say_what_the_ticks_are(high: float, most: int) -> None:
    labels = scale_to(high, most=most).labels()
    assert len({label for _, label in labels}) == len(labels)
    for tick, label in labels:
        assert float(label.replace(",", "")) == pytest.approx(tick)


@pytest.mark.parametrize(
    ("high", "labels"),
    [
        (52.9, ["0", "20", "40", "60"]),
        (1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.3, ["0.0", "0.1", "0.2", "0.3"]),
        (1924, ["0", "500", "1,000", "1,500", "2,000"]),
        (0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (math.inf, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_what_people_read(high: float, labels: list[str]) -> None:
    assert [label for _, label in scale_to(high).labels()] == labels


def test_what_is_counted_has_whole_ticks() -> None:
    assert scale_to(2, whole=True).ticks == (0, 1, 2)


@given(st.lists(st.floats(0, 1e12), max_size=5))
def test_a_logarithmic_scale_has_powers_of_ten_around_the_values(values: list[float]) -> None:
    values = [value for value in values if value == 0 or value > 1e-12]
    scale = log_scale(values)
    assert scale.low < scale.high
    assert all(scale.low * (1 - 1e-9) <= v <= scale.high * (1 + 1e-9) for v in values if v)
    assert all(math.log10(tick) == pytest.approx(round(math.log10(tick))) for tick in scale.ticks)
    assert 2 <= len(scale.ticks) <= 8


@given(st.floats(-1e9, 1e9))
def test_a_share_lies_on_the_axis(value: float) -> None:
    for scale in (Scale(0.0, 3.0, ()), Scale(0.1, 100.0, (), log=True)):
        assert 0 <= scale.share(value) <= 1
        assert (scale.share(scale.low), scale.share(scale.high)) == (0, 1)


@pytest.mark.parametrize(
    ("seconds", "unit"), [(7200, "s"), (1, "s"), (0.4, "ms"), (2e-5, "us"), (3e-9, "ns"), (0, "ns")]
)
def test_the_unit_of_a_time_axis_suits_its_length(seconds: float, unit: str) -> None:
    assert time_unit(seconds)[0] == unit
