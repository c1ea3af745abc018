"""Code that waits inside of its calls, as a process of SimPy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import simpy

Process = Generator[simpy.Event, Any, None]
"""What SimPy runs."""


class _ClosedError(BaseException):
    """Nobody goes on with the simulation. No `except Exception` may catch it."""


class Blocking:
    """A function that may `wait` anywhere in what it calls, where a generator could not yield.

    It has a thread of its own, and either that thread or the simulation's runs, never both: the
    order of events is SimPy's.
    """

    def __init__(self, env: simpy.Environment, function: Callable[[], None]) -> None:
        """``function``: begins when the simulation gets there."""
        self._env, self._function = env, function
        self._go_on, self._waits = threading.Lock(), threading.Lock()
        self._go_on.acquire()
        self._waits.acquire()
        self._event: simpy.Event | None = None
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="fjx-simulated", daemon=True)
        self._thread.start()
        self.process = env.process(self._steps())

    def wait(self, event: simpy.Event) -> None:
        """Return when the event has happened; only for what the function calls."""
        self._event = event
        self._waits.release()
        self._go_on.acquire()
        if self._closing:
            raise _ClosedError

    def close(self) -> None:
        """End the function where it waits."""
        self._closing = True
        if self._thread.is_alive():
            self._go_on.release()
            self._thread.join()

    def _steps(self) -> Process:
        while True:
            self._go_on.release()
            self._waits.acquire()
            if self._event is None:
                break
            yield self._event
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        self._go_on.acquire()
        try:
            if not self._closing:
                self._function()
        except _ClosedError:
            return
        except BaseException as error:
            self._error = error
        self._event = None
        self._waits.release()
