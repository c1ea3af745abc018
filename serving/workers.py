"""Threads for what would hold up the event loop: encoding, rendering, building large answers."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_Result = TypeVar("_Result")

_INLINE_SIZE = 4_000
"""Characters that take about a millisecond: handing less to a thread would take longer."""


class Workers:
    """A few threads that take work first come, first served.

    Unlike asyncio's own, they do not hold up the end of the process: what a client has sent last
    may take seconds to encode, and nothing can interrupt that.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._started = self._unfinished = 0
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()

    async def run(self, function: Callable[[], _Result]) -> _Result:
        """What ``function`` returns or raises. Cancelling drops it if it has not begun."""
        future: Future[_Result] = Future()
        with self._lock:
            self._unfinished += 1
            if self._started < min(self._unfinished, self._count):
                self._started += 1
                name = f"fjx-server-{self._started}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
        self._work.put((function, future))
        try:
            return await asyncio.wrap_future(future)
        finally:
            del function, future  # an error would keep itself, and all that led to it

    def _serve(self) -> None:
        while True:
            function, future = self._work.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            del function, future  # hold no request's text while waiting
            with self._lock:
                self._unfinished -= 1


PYTHON = Workers(1)
"""For Python and what keeps its lock: two at once would take no less time, and the event loop would
wait for both whenever it wants its turn."""
RENDERING = Workers(1)
"""For chat templates, which are programs of somebody else: what they do to a short message may take
a second. So others wait for them alone."""
ENCODING = Workers(max(2, min(4, os.cpu_count() or 1)))
"""For what mostly runs without Python's lock."""


async def off_loop(
    size: int,
    work: Callable[[], _Result],
    *,
    workers: Workers = PYTHON,
    inline: int = _INLINE_SIZE,
) -> _Result:
    """The result of ``work``, which runs in a thread if it takes long: streams go on meanwhile.

    Args:
        size: characters or tokens to work on.
        work: reads, encodes, decodes or formats them.
        workers: whose thread that is.
        inline: the largest size that is worked on at once.
    """
    return work() if size <= inline else await workers.run(work)
