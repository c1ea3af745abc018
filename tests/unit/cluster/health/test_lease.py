"""A worker ends when its driver has been silent for too long, and not before it has heard it."""

from __future__ import annotations

import threading
import time

from fjx.cluster.health.lease import Lease


class Clock:
    """Goes on when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_process_that_was_stopped_begins_nothing_when_it_goes_on() -> None:
    ended: list[float] = []
    clock = Clock()
    lease = Lease(10.0, ended.append, clock)
    clock.now += 1000.0
    lease.check()
    lease.renew()
    clock.now += 10.0
    lease.renew()
    lease.check()
    assert not ended
    clock.now += 10.5
    lease.check()
    assert ended == [10.5]
    ended.clear()
    lease.renew()  # a sign of life that was asked for before it stopped comes too late
    assert ended == [10.5]


def test_it_ends_without_being_asked() -> None:
    ended = threading.Event()
    lease = Lease(0.05, lambda seconds: ended.set())
    lease.renew()
    assert ended.wait(10.0)
    again = threading.Event()
    heard = Lease(5.0, lambda seconds: again.set())
    for _ in range(5):
        heard.renew()
        time.sleep(0.01)
    assert not again.is_set()
