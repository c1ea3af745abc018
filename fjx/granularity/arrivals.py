"""When requests arrive: rate and burstiness over several windows of time.

Each window is divided into slots that hold sums, not arrivals. So memory is fixed at any rate, no
arrival is left out or weighted, and what is given up is the sharpness of the window's far edge: it
lies between 59/60 of the window and the whole of it. (A list of the newest arrivals with an upper
limit would shorten the window just when many arrive.)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fjx.errors import UserError
from fjx.sharding.table_fields import is_number

DEFAULT_WINDOWS = (10.0, 60.0, 300.0)
"""Seconds: a burst, a minute, and long enough for a coefficient of variation."""
SLOTS = 60
"""Slots of a window."""


@dataclass(frozen=True)
class WindowFigures:
    """The arrivals of one window of time."""

    seconds: float
    """Length of the window."""
    arrivals: int
    rate: float
    """Arrivals a second."""
    cv: float | None
    """Coefficient of variation of the times between arrivals: standard deviation over mean. A
    Poisson process has 1. None: fewer than two intervals, or all of them zero."""


@dataclass
class _Slot:
    number: int
    arrivals: int = 0
    intervals: int = 0
    total: float = 0.0
    """Sum of the intervals, seconds."""
    squares: float = 0.0
    """Sum of their squares."""


@dataclass
class _ArrivalWindow:
    seconds: float
    slots: deque[_Slot] = field(default_factory=lambda: deque(maxlen=SLOTS))

    @property
    def width(self) -> float:
        return self.seconds / SLOTS

    def record(self, now: float, interval: float | None) -> None:
        number = math.floor(now / self.width)
        if not self.slots or self.slots[-1].number != number:
            self.slots.append(_Slot(number))
        slot = self.slots[-1]
        slot.arrivals += 1
        if interval is not None:
            # A window cannot tell how long a silence was that began before it did.
            interval = min(interval, self.seconds)
            slot.intervals += 1
            slot.total += interval
            slot.squares += interval * interval

    def figures(self, now: float, watched: float) -> WindowFigures:
        first = math.floor(now / self.width) - SLOTS + 1
        slots = [slot for slot in self.slots if slot.number >= first]
        arrivals = sum(slot.arrivals for slot in slots)
        covered = min(now - first * self.width, watched)
        intervals, total = sum(slot.intervals for slot in slots), sum(slot.total for slot in slots)
        cv = None
        if intervals >= 2 and total > 0:
            mean = total / intervals
            variance = sum(slot.squares for slot in slots) / intervals - mean * mean
            cv = math.sqrt(max(0.0, variance)) / mean
        return WindowFigures(self.seconds, arrivals, arrivals / covered, cv)


class ArrivalWindows:
    """Collects arrivals and tells their figures over windows of time.

    It has no clock: times are arguments, in seconds from any fixed moment. A time before the latest
    one counts as the latest.

    Args:
        started: From when on arrivals are recorded. Until a window is full, its rate is that since
            the start, or over the shortest window while not even that is full.
        windows: Lengths in seconds, growing.

    Raises:
        UserError: the windows are not growing lengths above zero.
    """

    def __init__(self, started: float, windows: Sequence[float] = DEFAULT_WINDOWS) -> None:
        rising = all(is_number(each) and 0 < each < math.inf for each in windows)
        if not windows or not rising or list(windows) != sorted(set(windows)):
            raise UserError(f"windows must be growing numbers of seconds, got {list(windows)}")
        self._started = self._latest = started
        self._last_arrival: float | None = None
        self._windows = [_ArrivalWindow(float(seconds)) for seconds in windows]

    def record(self, now: float) -> None:
        """Note one arrival."""
        now = self._latest = max(now, self._latest)
        interval = None if self._last_arrival is None else now - self._last_arrival
        self._last_arrival = now
        for window in self._windows:
            window.record(now, interval)

    def observe(self, now: float) -> tuple[WindowFigures, ...]:
        """The figures of each window that ends now, the shortest first; changes nothing."""
        now = max(now, self._latest)
        watched = max(now - self._started, self._windows[0].seconds)
        return tuple(window.figures(now, watched) for window in self._windows)
