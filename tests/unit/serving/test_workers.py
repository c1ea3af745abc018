"""Threads for work that would hold up the event loop."""

from __future__ import annotations

import asyncio
import threading

from fjx.serving.workers import Workers


def test_work_that_comes_at_once_is_done_side_by_side():
    workers, meeting = Workers(2), threading.Barrier(2)

    def meet() -> None:
        meeting.wait(timeout=60)

    async def run() -> None:
        await workers.run(lambda: None)  # one thread is there, and has nothing to do
        await asyncio.gather(workers.run(meet), workers.run(meet))

    asyncio.run(run())


def test_no_more_threads_than_allowed_and_all_work_is_done():
    workers, seen, lock = Workers(2), set(), threading.Lock()

    def note(number: int) -> int:
        with lock:
            seen.add(threading.current_thread().name)
        return number

    async def run() -> list[int]:
        return await asyncio.gather(*(workers.run(lambda n=n: note(n)) for n in range(100)))

    assert asyncio.run(run()) == list(range(100))
    assert len(seen) <= 2
