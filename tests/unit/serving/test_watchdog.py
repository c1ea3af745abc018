"""What ends a process that hangs, and what does not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from fjx.serving.watchdog import EXIT_HUNG, Deadline, Watchdog


def codes_after(
    stalled_seconds: Callable[[], float], limit: float, seconds: float, block: float = 0.0
) -> list[int]:
    """With which codes a watchdog has ended the process after so many seconds; for ``block`` of
    them the event loop hangs."""
    codes: list[int] = []

    async def run() -> None:
        watching = asyncio.create_task(Watchdog(stalled_seconds, limit, codes.append).watch())
        await asyncio.sleep(0)
        time.sleep(block)
        await asyncio.sleep(seconds)
        watching.cancel()

    asyncio.run(run())
    return codes


def test_a_step_that_does_not_end_ends_the_process() -> None:
    begun = time.monotonic()
    assert codes_after(lambda: time.monotonic() - begun, 0.4, 2.0) == [EXIT_HUNG]


def test_long_steps_one_after_the_other_do_not() -> None:
    """Whenever it is looked at, the step has lasted longer than a round: each is another one."""
    assert codes_after(lambda: 0.3, 0.4, 1.5) == []


def test_a_process_that_was_stopped_has_not_hung() -> None:
    """The clock says an hour, and a few rounds have seen it."""
    looks = iter([3600.0, 3600.1])
    assert codes_after(lambda: next(looks, 0.0), 0.8, 2.0) == []


def test_an_event_loop_that_hangs_ends_the_process() -> None:
    assert codes_after(lambda: 0.0, 0.4, 0.1, block=3.0) == [EXIT_HUNG]
    assert codes_after(lambda: 0.0, 60.0, 0.1, block=0.5) == []


def test_a_deadline_is_the_first_one_that_was_set() -> None:
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    deadline = Deadline(end)
    deadline.set(0.05)
    deadline.set(3600.0)
    assert ended.wait(30)
    assert codes == [1]
