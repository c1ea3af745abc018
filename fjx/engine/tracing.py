"""A trace of some steps by JAX's profiler, to be opened with XProf or Perfetto."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import jax

logger = logging.getLogger(__name__)


class StepTrace:
    """Traces the first steps after a warm-up, then nothing more."""

    def __init__(self, folder: Path, skip: int, steps: int) -> None:
        """
        Args:
            folder: where the trace is written.
            skip: steps before it begins.
            steps: how many are traced.
        """
        self._folder = folder
        self._first, self._end = skip, skip + steps
        self._done = 0

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Trace a step, if it is one of those."""
        if self._done == self._first:
            jax.profiler.start_trace(str(self._folder))
        self._done += 1
        if not self._first < self._done <= self._end:
            yield
            return
        with jax.profiler.StepTraceAnnotation("step", step_num=self._done):
            yield
        if self._done == self._end:
            jax.profiler.stop_trace()  # type: ignore[no-untyped-call]
            logger.info("wrote a trace of %d steps to %s", self._end - self._first, self._folder)
