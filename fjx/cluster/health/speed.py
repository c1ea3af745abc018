"""Which worker is slow, and since when: pure arithmetic on what was measured."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence

_USUAL = 64
"""Measurements of a kind that say what is usual."""
_FEWEST = 16
"""Measurements of a kind that are needed before it is judged."""
_RECENT = 7
"""Measurements that say what is now."""
_LEVEL = 16
"""Measurements in a row that say how long something takes."""
_KINDS = 8
"""Kinds of work whose measurements are kept."""
SLOW = 3.0
"""Times its usual time, compared with the others, at which a stage counts as slow."""
SLOW_ANSWER = 5.0
"""The same limit for answers, which vary more."""
_WELL = 0.5
"""Share of the limit below which something slow counts as well again."""


class Speed:
    """How long something takes, against how long it usually takes."""

    def __init__(self, least: float = 0.0) -> None:
        """``least``: seconds; what is quicker counts as this."""
        self._least = least
        self._usual: dict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=_USUAL))
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        """Seconds, and how many times as long as usual that is."""

    def observe(self, kind: Hashable, seconds: float, learn: bool = True) -> None:
        """Add a measurement. Only measurements of the same ``kind`` are compared. ``learn`` is
        False while it is known to be slow, so that slow times do not become the usual ones."""
        seconds, usual = max(seconds, self._least), self._usual[kind]
        if len(usual) >= _FEWEST:
            self._recent.append((seconds, seconds / statistics.median(usual)))
        if learn or len(usual) < _FEWEST:
            usual.append(seconds)

    @property
    def known(self) -> bool:
        """Whether enough is known for a judgement."""
        return len(self._recent) == _RECENT

    @property
    def factor(self) -> float:
        """How many times as long as usual it takes now; 1 where too little is known."""
        return statistics.median(factor for _, factor in self._recent) if self.known else 1.0

    @property
    def seconds(self) -> float:
        """How long it takes now; 0 where nothing is known."""
        return statistics.median(seconds for seconds, _ in self._recent) if self._recent else 0.0


class Level:
    """How long a unit of work takes, to be compared with what it takes others."""

    def __init__(self, least: float) -> None:
        """``least``: seconds; what should take less counts as if it should take this."""
        self._least = least
        self._recent: dict[Hashable, deque[tuple[float, float]]] = {}
        """Seconds and units of each kind's last measurements; the kind observed last is last."""

    def observe(self, kind: Hashable, seconds: float, units: float = 1.0) -> None:
        """Add the seconds of some units of work; only work of the same ``kind`` is compared."""
        recent = self._recent.pop(kind, deque(maxlen=_LEVEL))
        recent.append((seconds, units))
        self._recent[kind] = recent
        if len(self._recent) > _KINDS:
            del self._recent[next(iter(self._recent))]

    @property
    def seconds(self) -> float:
        """How long what was observed last takes now; 0 where nothing is known."""
        last = next(reversed(self._recent.values()), ())
        return statistics.median(seconds for seconds, _ in last) if last else 0.0

    def against(self, others: Sequence[Level]) -> float:
        """How many times as long it takes as others would for as much; 1 where too little is
        known."""
        for kind in reversed(self._recent):
            units = [unit for other in others if (unit := other._unit(kind)) is not None]
            own = self._unit(kind)
            if own is not None and units:
                _, amount = self._recent[kind][-1]
                return own * amount / max(statistics.median(units) * amount, self._least)
        return 1.0

    def _unit(self, kind: Hashable) -> float | None:
        """Seconds of a unit; None: too little is known."""
        recent = self._recent.get(kind, ())
        if len(recent) < _LEVEL:
            return None
        return statistics.median(seconds / units for seconds, units in recent)


def slowdown(factor: float, others: Sequence[float], slow: float, is_slow: bool) -> float | None:
    """How many times as long as it should something takes; None: it is not slow.

    Args:
        factor: see `Speed.factor`.
        others: those of its like. Where all take longer, it is the load.
        slow: from which on it counts as slow.
        is_slow: whether it does so far.
    """
    compared = factor / max(statistics.median(others), 1.0) if others else factor
    return compared if compared > (slow * _WELL if is_slow else slow) else None
