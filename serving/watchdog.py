"""Ends a process that hangs, so that a supervisor starts another one."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

logger = logging.getLogger("fjx.server")

EXIT_HUNG = 70
"""The exit code of a process that hung (EX_SOFTWARE of sysexits.h)."""

_INTERVAL = 1.0


def leave(code: int) -> NoReturn:
    """End the process without waiting for any thread; what was logged is written."""
    logging.shutdown()
    os._exit(code)


class Watchdog:
    """Watches steps of the engine and the event loop from a thread of its own.

    It counts its own rounds besides the clock: a process that was stopped for an hour has not hung
    for an hour.
    """

    def __init__(
        self,
        stalled_seconds: Callable[[], float],
        limit: float,
        end: Callable[[int], object] = leave,
    ) -> None:
        """
        Args:
            stalled_seconds: how long the engine has been at its present step.
            limit: seconds after which the process ends; infinity: never.
            end: ends the process.
        """
        self._stalled_seconds = stalled_seconds
        self._limit = limit
        self._end = end
        self._interval = min(_INTERVAL, limit / 4)
        self._beaten = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fjx-watchdog", daemon=True)

    async def watch(self) -> None:
        """Watch until cancelled, in the event loop that is watched."""
        self._thread.start()
        try:
            while True:
                self._beaten = True
                await asyncio.sleep(self._interval / 2)
        finally:
            self._stopped.set()

    def _watch(self) -> None:
        step_rounds = loop_rounds = 0
        while not self._stopped.wait(self._interval):
            stalled = self._stalled_seconds()
            step_rounds = step_rounds + 1 if stalled >= self._interval else 0
            loop_rounds = 0 if self._beaten else loop_rounds + 1
            self._beaten = False
            # Rounds in a row may have seen one long step after the other.
            if stalled >= self._limit and step_rounds * self._interval >= self._limit:
                hanging = "a step of the engine"
            elif loop_rounds * self._interval >= self._limit:
                hanging = "the event loop"
            else:
                continue
            end_at_once(f"{hanging} has not ended for {self._limit:g} s", EXIT_HUNG, self._end)
            return


class Deadline:
    """Ends the process if it has not ended by itself in time."""

    def __init__(self, end: Callable[[int], object] = leave) -> None:
        self._end = end
        self._set = False

    def set(self, seconds: float) -> None:
        """Set the deadline ``seconds`` from now; a later call changes nothing."""
        if not self._set:
            self._set = True
            threading.Thread(target=self._wait, args=(seconds,), daemon=True).start()

    def _wait(self, seconds: float) -> None:
        time.sleep(seconds)
        end_at_once("the server could not stop in time", 1, self._end)


def end_at_once(reason: str, code: int, end: Callable[[int], object] = leave) -> None:
    """End the process without waiting for any thread, and say where each of them stands."""
    logger.critical("%s; the process ends with exit code %d", reason, code)
    faulthandler.dump_traceback(all_threads=True)
    end(code)
