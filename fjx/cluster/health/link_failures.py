"""Which nodes do not reach each other, although the driver reaches both, and which to do without.

Between two nodes alone nobody can tell whose fault it is. So a pair is remembered for a while, and
of all that are known as few nodes are left out as break them up: if the wrong one was left out, the
next cut shows it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

KEPT_SECONDS = 120.0
"""From when a cut was last seen until its nodes are used again."""

Pair = frozenset[str]
"""Two nodes."""


def fewest(pairs: Collection[Pair], serving: Collection[str]) -> frozenset[str]:
    """Nodes without which no pair is left: again and again the one that is in most.

    Where several are, one that serves stays if another one does not, and the first by name stays.
    """
    left, chosen = set(pairs), set()
    while left:
        counts = Counter(node for pair in left for node in pair)
        worst = max(counts, key=lambda node: (counts[node], node not in serving, node))
        chosen.add(worst)
        left = {pair for pair in left if worst not in pair}
    return frozenset(chosen)


class LinkFailures:
    """What workers say of each other, and what follows. Thread-safe."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            seconds: for which others may say the same of a node before it is judged.
            clock: in seconds.
        """
        self._seconds, self._clock = seconds, clock
        self._lock = threading.Lock()
        self._reported: dict[tuple[str, str], float] = {}
        """Since when a node says of another that it does not reach it."""
        self._heard: dict[str, float] = {}
        """When the last sign of life that came from a node was asked for."""
        self._known: dict[Pair, float] = {}
        """When a cut was last seen."""
        self._avoided: frozenset[str] = frozenset()

    def heard(self, node: str, asked: float, unreached: Collection[str]) -> None:
        """A node's worker gave a sign of life that was asked for at a time (of the clock), and says
        which other nodes it does not reach."""
        now = self._clock()
        with self._lock:
            self._heard[node] = asked
            for pair in [pair for pair in self._reported if pair[0] == node]:
                if pair[1] not in unreached:
                    del self._reported[pair]
            for other in unreached:
                self._reported.setdefault((node, other), now)

    def judge(self, serving: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """The nodes whose workers must go, each with the others that it is cut off from.

        A node that the driver does not reach either is none of them: both ends of a cut must have
        given a sign of life since it was reported.

        Args:
            serving: those that have a worker that is not lost.
        """
        now = self._clock()
        with self._lock:
            self._reported = {
                pair: since for pair, since in self._reported.items() if set(pair) <= set(serving)
            }
            # How long both ends have answered since.
            answered = {
                frozenset(pair): min(self._heard.get(node, since) for node in pair) - since
                for pair, since in self._reported.items()
            }
            if max(answered.values(), default=0.0) <= self._seconds:
                return {}
            self._forget_old(now)
            self._known |= {pair: now for pair, seconds in answered.items() if seconds > 0}
            self._avoided = fewest(self._known, serving)
            return {node: self._others(node) for node in self._avoided & set(serving)}

    @property
    def avoided(self) -> frozenset[str]:
        """The nodes to do without."""
        with self._lock:
            if self._forget_old(self._clock()):
                self._avoided &= {node for pair in self._known for node in pair}
            return self._avoided

    def _others(self, node: str) -> tuple[str, ...]:
        return tuple(
            sorted(other for pair in self._known if node in pair for other in pair - {node})
        )

    def _forget_old(self, now: float) -> bool:
        """Whether there is anything to forget."""
        old = [pair for pair, seen in self._known.items() if now - seen > KEPT_SECONDS]
        for pair in old:
            del self._known[pair]
        return bool(old)
