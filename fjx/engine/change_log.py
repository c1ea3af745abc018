"""A change of plan in the log: from what to what, how far it is, what it took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from fjx.outputs import SwitchRecord
from fjx.sharding.costs.table import deployment_line
from fjx.wording import format_bytes, format_seconds

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0
_LARGEST_PAUSE_SECONDS = 60.0
"""A long change doubles the time between its lines up to this: each shall tell something new."""


class ChangeLog:
    """Writes a line when a change begins and ends, and now and then while it lasts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._pause = _SECONDS_BETWEEN_LINES

    def begun(self, record: SwitchRecord) -> None:
        """A change begins."""
        self._pause = _SECONDS_BETWEEN_LINES
        self._next = self._clock() + self._pause
        logger.info(
            "change of plan %d begins (%s): from %s to %s",
            record.number,
            record.reason,
            deployment_line(record.before),
            deployment_line(record.after),
        )

    @property
    def is_due(self) -> bool:
        """Whether it is time to say how far a change is."""
        return self._clock() >= self._next

    def progress(self, record: SwitchRecord) -> None:
        """How far a change is."""
        self._pause = min(2 * self._pause, _LARGEST_PAUSE_SECONDS)
        self._next = self._clock() + self._pause
        moved = ""
        if record.planned_bytes:
            planned = format_bytes(record.planned_bytes)
            moved = f", {format_bytes(record.moved_bytes)} of {planned} moved"
        logger.info(
            "change of plan %d: %s, %.0f%%%s",
            record.number,
            record.state,
            100 * record.progress,
            moved,
        )

    def ended(self, record: SwitchRecord) -> None:
        """A change is done. One that was aborted says so itself."""
        if record.pause_seconds is None:
            return
        logger.info(
            "change of plan %d done in %s: %s moved, a pause of %s; now %s",
            record.number,
            format_seconds(sum(record.seconds.values())),
            format_bytes(record.moved_bytes),
            format_seconds(record.pause_seconds),
            deployment_line(record.after),
        )
