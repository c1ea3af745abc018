"""How long a worker's part of a step takes, measured on some steps, in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import jax

from fjx.cluster.messages import StepTiming
from fjx.cluster.transfer_endpoint import wait_for

_EVERY_SECONDS = 0.25
"""From the end of one measurement to the next step that may be measured."""
_POLL_SECONDS = 0.0005
_LIMIT_SECONDS = 60.0
"""For what a step needs to come; a worker before this one may be lost."""


class StageSpan(NamedTuple):
    """A stage's part of a step: copies of what it took and of what it gave, which may belong to
    other programs by now."""

    sources: Sequence[Any]
    """What must be there before it can begin, the worker's step before included."""
    result: Any


def copy(array: Any) -> Any:
    """A copy that is ready shortly after the array is; nothing waits for it."""
    return jax.device_put(array, array.sharding, may_alias=False)


class StageTimer:
    """Measures from when a stage has what it needs until it is done: what the stages before it
    take is not counted."""

    def __init__(self) -> None:
        self._steps: queue.SimpleQueue[tuple[StepTiming, Sequence[StageSpan]]] = queue.SimpleQueue()
        self._timed: queue.SimpleQueue[StepTiming] = queue.SimpleQueue()
        self._measuring, self._next = False, 0.0
        threading.Thread(target=self._run, name="fjx-pace", daemon=True).start()

    @property
    def due(self) -> bool:
        """Whether the next step is to be measured."""
        return not self._measuring and time.monotonic() > self._next

    def measure(self, what: StepTiming, spans: Sequence[StageSpan]) -> None:
        """Measure the seconds of a step that was just dispatched."""
        self._measuring = True
        self._steps.put((what, spans))

    def take(self) -> tuple[StepTiming, ...]:
        """What was measured since the last call."""
        return tuple(self._timed.get() for _ in range(self._timed.qsize()))

    def _run(self) -> None:
        while True:
            what, spans = self._steps.get()
            with suppress(TimeoutError, jax.errors.JaxRuntimeError):  # others hear of a lost step
                self._timed.put(what._replace(seconds=sum(_seconds(span) for span in spans)))
            del spans
            self._next, self._measuring = time.monotonic() + _EVERY_SECONDS, False


def _seconds(span: StageSpan) -> float:
    wait_for(span.sources, _LIMIT_SECONDS, "a step", _POLL_SECONDS)
    begun = time.perf_counter()
    wait_for([span.result], _LIMIT_SECONDS, "a step", _POLL_SECONDS)
    return time.perf_counter() - begun
