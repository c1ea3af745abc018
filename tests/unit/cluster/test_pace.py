"""What a step takes is counted from when it has what it needs."""

from __future__ import annotations

import time
from typing import Any

from fjx.cluster.pace import Pace, Span


class Arriving:
    """An array that is ready after a while."""

    def __init__(self, seconds: float) -> None:
        self._at = time.perf_counter() + seconds

    def is_ready(self) -> bool:
        return time.perf_counter() >= self._at

    def block_until_ready(self) -> Any:
        return self


def test_waiting_for_the_stage_before_is_not_counted() -> None:
    pace = Pace()
    assert pace.due
    pace.measure(7, 32, [Span(Arriving(0.3), Arriving(0.5)), Span(Arriving(0.6), Arriving(0.7))])
    assert not pace.due
    timed = ()
    while not timed:
        timed = pace.take()
        time.sleep(0.01)
    ((run, rows, seconds),) = timed
    assert (run, rows) == (7, 32)
    assert 0.25 < seconds < 0.5
    assert pace.take() == ()
