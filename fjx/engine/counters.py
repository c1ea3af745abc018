"""Counts what the engine has done, and where its time went."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from fjx.engine.replicas import Replicas
from fjx.outputs import EngineStats, FinishReason, PlanStats, SpeculationStats


class EngineCounters:
    """Counters since the start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._step_tokens: Counter[int] = Counter()
        self._step_seconds = self._wait_seconds = 0.0

    def count(self, **numbers: int) -> None:
        """Add to ``steps`` (of replicas), ``prompt_tokens`` or ``generation_tokens``."""
        self._counts.update(numbers)

    def count_step(self, tokens: int) -> None:
        """Count a step of this number of tokens."""
        self._step_tokens[tokens] += 1

    def count_finished(self, reason: FinishReason) -> None:
        """Count a request that has ended."""
        self._finished[reason] += 1

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Time a step."""
        started = self._clock()
        yield
        self._step_seconds += self._clock() - started

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time what waits for a device, in a step."""
        started = self._clock()
        yield
        self._wait_seconds += self._clock() - started

    def stats(
        self,
        replicas: Replicas,
        compiles: Mapping[str, int],
        plan: PlanStats,
        speculation: SpeculationStats | None,
    ) -> EngineStats:
        """A snapshot, with what others have counted."""
        of_replicas = replicas.counts
        return EngineStats(
            num_requests_running=replicas.num_running,
            num_requests_waiting=replicas.num_waiting,
            kv_cache_usage=replicas.kv_usage,
            prefix_cache_queries=of_replicas["prefix_queries"],
            prefix_cache_hits=of_replicas["prefix_hits"],
            prompt_tokens=self._counts["prompt_tokens"],
            generation_tokens=self._counts["generation_tokens"],
            num_preemptions=of_replicas["preemptions"],
            num_steps=self._counts["steps"],
            step_tokens=dict(self._step_tokens),
            kv_pages=replicas.kv_pages,
            step_seconds=self._step_seconds,
            host_seconds=self._step_seconds - self._wait_seconds,
            compiles=dict(compiles),
            requests_finished=dict(self._finished),
            plan=plan,
            speculation=speculation,
        )
