"""Which of the requests that wait go to another replica, when there is a new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fjx.scheduling.request import Request


class RequestMove(NamedTuple):
    """A request goes to another replica."""

    request: Request
    to: int
    """The replica, by its number."""


def even_out(loads: Sequence[int], queues: Sequence[Sequence[Request]]) -> list[RequestMove]:
    """Let the last in the queue of the replica with the most requests go to the one with the
    fewest, until they have about as many.

    Args:
        loads: unfinished requests of each replica.
        queues: those among them that wait.

    Returns:
        Who moves, in the order in which they are served.
    """
    left, waiting = list(loads), [sorted(queue, key=lambda each: each.place) for queue in queues]
    moves: list[RequestMove] = []
    while True:
        least = left.index(min(left))
        most = max((i for i in range(len(left)) if waiting[i]), key=left.__getitem__, default=least)
        if left[most] - left[least] < 2:
            return sorted(moves, key=lambda move: move.request.place)
        moves.append(RequestMove(waiting[most].pop(), least))
        left[most] -= 1
        left[least] += 1
