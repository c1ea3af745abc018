"""Who gives way when the queue is full, and when to come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby

from fjx.scheduling.request import Request

_RECENT = 64
"""Ended requests whose times count."""
_UNMEASURED_SECONDS = 5.0
"""How long a request takes at least, while none has ended yet."""
_LONGEST_WAIT = 600.0
"""Seconds beyond which an estimate says no more than: much later."""


class ServiceTimes:
    """How long requests take from their first step to their end."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def ended(self, request: Request) -> None:
        """Take note of a request that has ended, in whatever way."""
        if request.scheduled is not None and request.ended is not None:
            self._recent.append(request.ended - request.scheduled)

    def retry_after(
        self, waiting: int, running: Iterable[Request], at_once: int, now: float
    ) -> float:
        """Seconds until the requests that wait now will have begun.

        Args:
            waiting: how many do.
            running: those that have begun.
            at_once: how many may run.
            now: by the engine's clock.
        """
        ages = [now - request.scheduled for request in running if request.scheduled is not None]
        return seconds_until_begun(waiting, at_once, self._recent, ages)


def seconds_until_begun(
    waiting: int, at_once: int, ended: Sequence[float], running: Sequence[float]
) -> float:
    """Seconds until all requests that wait will have begun, at least 1.

    The mean time of a request is what requests have run altogether for each that has ended: the
    estimate of greatest likelihood, where those that still run end at a constant rate.

    Args:
        waiting: requests in the queue.
        at_once: requests that run side by side.
        ended: seconds that each of those took which have ended of late.
        running: seconds that each of those has run which have not.
    """
    if ended:
        mean = (sum(ended) + sum(running)) / len(ended)
    else:
        mean = max(_UNMEASURED_SECONDS, *running, 0.0)
    return min(max(waiting * mean / at_once, 1.0), _LONGEST_WAIT)


def who_gives_way(waiting: Sequence[Request], priority: int, lacking: int) -> list[str] | None:
    """Ids of the requests whose places a more urgent one takes: of the least urgent ones the
    youngest. All completions of an id go, or none.

    Args:
        waiting: the queue.
        priority: of the request that needs room; a larger number is less urgent.
        lacking: how many places it lacks.

    Returns:
        As few as are needed; None: there are not enough that are less urgent and have not begun.
    """
    if not any(request.priority > priority for request in waiting):
        return None
    ids: list[str] = []
    behind = sorted(waiting, key=lambda request: request.place, reverse=True)
    for id, group in groupby(behind, key=lambda request: request.id):
        if lacking <= 0:
            break
        completions = list(group)
        first = completions[0]
        if first.priority <= priority:
            break
        if len(completions) == first.params.n and all(r.scheduled is None for r in completions):
            ids.append(id)
            lacking -= len(completions)
    return ids if lacking <= 0 else None
