"""A worker's right to be there: it ends by itself when its driver has been silent for long.

A driver that hears nothing from a worker puts another one in its place. Ray ends the old one, too,
but only where it can reach it: one that is cut off would hold its devices, and work through what it
was sent before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LOOKS = 8
"""Within the limit."""


class Lease:
    """Counts the seconds since the driver was last heard. Thread-safe."""

    def __init__(
        self,
        seconds: float,
        end: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            seconds: without a word from the driver after which ``end`` is called.
            end: ends the process; is given the seconds that it was silent.
            clock: goes on while the process is stopped.
        """
        self._seconds, self._end, self._clock = seconds, end, clock
        self._heard: float | None = None

    def renew(self) -> None:
        """The driver was heard; from the first time on it must be heard again and again."""
        self.check()
        if self._heard is None:
            threading.Thread(target=self._watch, name="fjx-lease", daemon=True).start()
        self._heard = self._clock()

    def check(self) -> None:
        """End the process if the driver has been silent for too long. Called before each step, too:
        a process that was stopped and goes on must not begin one."""
        if self._heard is not None and self._clock() - self._heard > self._seconds:
            self._end(self._clock() - self._heard)

    def _watch(self) -> None:
        while True:
            time.sleep(self._seconds / _LOOKS)
            self.check()
