"""Who is called slow, and who is not."""

from __future__ import annotations

import pytest

from fjx.cluster.speed import Speed, slowdown


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
