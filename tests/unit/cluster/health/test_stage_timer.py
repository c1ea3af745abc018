"""What a step takes is counted from when it has what it needs."""

from __future__ import annotations

import time
from typing import Any

from fjx.cluster.health.stage_timer import StageSpan, StageTimer
from fjx.cluster.messages import StepTiming


class Arriving:
    """An array that is ready after a while."""

    def __init__(self, seconds: float) -> None:
        self._at = time.perf_counter() + seconds

    def is_ready(self) -> bool:
        return time.perf_counter() >= self._at

    def block_until_ready(self) -> Any:
        return self


def test_waiting_for_the_stage_before_is_not_counted() -> None:
    pace = StageTimer()
    assert pace.due
    early, late = Arriving(0.6), Arriving(2.0)
    spans = [StageSpan([early], Arriving(1.0)), StageSpan([early, late], Arriving(2.2))]
    pace.measure(StepTiming(7, 32, 0.0, layers=3), spans)
    assert not pace.due
    timed = ()
    while not timed:
        timed = pace.take()
        time.sleep(0.01)
    (what,) = timed
    assert (what.run, what.rows, what.layers) == (7, 32, 3)
    assert 0.45 < what.seconds < 1.2
    assert pace.take() == ()
