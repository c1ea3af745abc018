"""Who is called slow, and who is not."""

from __future__ import annotations

import pytest

from fjx.cluster.health.speed import Level, Speed, slowdown


def observed(*seconds: float, kind: int = 4, learn: bool = True) -> Speed:
    speed = Speed()
    for each in seconds:
        speed.observe(kind, each, learn)
    return speed


def test_nothing_is_slow_before_enough_is_known() -> None:
    assert observed(*[0.01] * 8, *[1.0] * 8).factor == 1.0


def test_a_few_long_steps_are_not_slowness_and_many_are() -> None:
    speed = observed(*[0.01] * 24)
    for _ in range(3):
        speed.observe(4, 0.5)
    assert speed.factor == 1.0
    speed.observe(4, 0.05)
    assert speed.factor == pytest.approx(5.0)
    assert speed.seconds == 0.05


def test_what_is_slow_for_long_does_not_become_usual() -> None:
    speed = observed(*[0.01] * 24)
    for _ in range(1000):
        speed.observe(4, 0.05, learn=False)
    assert speed.factor == pytest.approx(5.0)


def test_steps_of_other_sizes_are_not_compared() -> None:
    speed = observed(*[0.01] * 24)
    for _ in range(20):
        speed.observe(32, 0.09)
    assert speed.factor == pytest.approx(1.0)


def test_answers_too_quick_to_tell_apart_are_the_same() -> None:
    speed = Speed(least=0.005)
    for seconds in [0.0001] * 24 + [0.004] * 8:
        speed.observe(None, seconds)
    assert speed.factor == 1.0


@pytest.mark.parametrize(
    ("factor", "others", "is_slow", "expected"),
    [
        (4.0, (), False, 4.0),
        (2.0, (), False, None),
        (2.0, (), True, 2.0),
        (1.4, (), True, None),
        (4.0, (1.0, 0.5), False, 4.0),
        (4.0, (4.0, 4.2), False, None),  # the load has changed
        (16.0, (4.0,), False, 4.0),
    ],
)
def test_slow_is_who_takes_longer_than_its_like(
    factor: float, others: tuple[float, ...], is_slow: bool, expected: float | None
) -> None:
    assert slowdown(factor, others, 3.0, is_slow) == expected


def level(seconds: float, layers: int, kind: int = 4, count: int = 16) -> Level:
    """Of a worker that takes so long for so many layers."""
    made = Level(least=0.002)
    for _ in range(count):
        made.observe(kind, seconds, layers)
    return made


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ((0.04, 10), [(0.004, 1), (0.008, 2)], 1.0),  # more layers take longer
        ((0.04, 4), [(0.01, 4), (0.03, 12)], 4.0),
        ((0.04, 4), [(0.01, 4)], 4.0),
        ((0.004, 1), [(0.001, 10)], 2.0),  # too quick to tell
        ((0.04, 4), [], 1.0),
    ],
)
def test_workers_are_compared_by_what_a_layer_takes(
    own: tuple[float, int], others: list[tuple[float, int]], expected: float
) -> None:
    factor = level(*own).against([level(*other) for other in others])
    assert factor == pytest.approx(expected)


def test_others_say_nothing_before_enough_is_known_or_by_other_steps() -> None:
    assert level(0.04, 4, count=15).against([level(0.01, 4)]) == 1.0
    assert level(0.04, 4).against([level(0.01, 4, count=15)]) == 1.0
    assert level(0.04, 4, kind=32).against([level(0.01, 4)]) == 1.0
    both = level(0.04, 4)
    for _ in range(3):
        both.observe(32, 0.3, 4)  # a few other steps between
    assert both.against([level(0.01, 4)]) == pytest.approx(4.0)
