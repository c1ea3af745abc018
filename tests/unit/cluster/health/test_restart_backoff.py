"""How soon what is lost again and again is replaced again."""

from __future__ import annotations

from dataclasses import dataclass

from fjx.cluster.health.restart_backoff import WELL_SECONDS, RestartBackoff


class Clock:
    """Goes on when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class One:
    """What serves."""

    opened: float
    brought: bool = False


def test_the_pause_grows_up_to_a_limit() -> None:
    backoff, pauses = RestartBackoff(2.0), []
    for _ in range(8):
        pauses.append(backoff.pause)
        backoff.failed()
    assert pauses == [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert backoff.vain == 8


def test_what_is_lost_before_it_has_served_was_in_vain() -> None:
    clock = Clock()
    backoff = RestartBackoff(2.0, clock)
    for count in range(4):
        one = One(clock.now)
        backoff.replaced([one])
        assert backoff.vain == count
        clock.now += WELL_SECONDS / 2
        backoff.lost([one])
    assert backoff.vain == 4
    assert backoff.pause == 16.0


def test_one_that_brings_a_token_or_stays_for_long_has_served() -> None:
    clock = Clock()
    backoff = RestartBackoff(2.0, clock)
    backoff.failed()
    one = One(clock.now)
    backoff.replaced([one])
    assert backoff.vain == 1
    one.brought = True
    assert backoff.vain == 0
    backoff.lost([one])
    assert backoff.pause == 0.0
    backoff.failed()
    other = One(clock.now)
    backoff.replaced([other])
    clock.now += WELL_SECONDS + 1
    assert backoff.vain == 0
    backoff.lost([other])
    assert backoff.pause == 0.0


def test_one_that_serves_beside_those_that_do_not_changes_nothing() -> None:
    clock = Clock()
    backoff, well = RestartBackoff(2.0, clock), One(clock.now, brought=True)
    for _ in range(3):
        one = One(clock.now)
        backoff.replaced([one])
        backoff.lost([one, well])
    assert backoff.vain == 3
