"""Serving requests on a real engine, with what each step was and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from elastic.loop import Streams

from fjx.engine.engine import Engine
from fjx.sampling_params import SamplingParams
from fjx.scheduling.microbatches import Microbatch
from fjx.scheduling.scheduler import ScheduledRows
from fjx.sim.workload import SimRequest

_IDLE_SECONDS = 0.0005


@dataclass(frozen=True)
class StepSeen:
    """One step of an engine."""

    rows: int
    samples: int
    pairs: float
    """Tokens that its rows attend to, in all."""
    seconds: float
    """From the step before to this one, drafting not counted."""

    @classmethod
    def of(cls, scheduled: Sequence[ScheduledRows], seconds: float) -> StepSeen:
        """Of these rows."""
        return cls(
            rows=sum(each.count for each in scheduled),
            samples=sum(each.samples for each in scheduled),
            pairs=sum(e.count * (2 * e.start + e.count + 1) / 2 for e in scheduled),
            seconds=seconds,
        )


@dataclass
class Seen:
    """What one run showed."""

    first: list[float] = field(default_factory=list)
    """Seconds from arrival to first token, by request."""
    end: list[float] = field(default_factory=list)
    """Seconds from arrival to last token."""
    tokens: list[list[int]] = field(default_factory=list)
    seconds: float = 0.0
    steps: list[StepSeen] = field(default_factory=list)
    rounds: list[tuple[int, list[float]]] = field(default_factory=list)
    """Of drafting: requests, and seconds of each round."""


def serve(engine: Engine, workload: Sequence[SimRequest], prompts: Sequence[list[int]]) -> Seen:
    """Serve requests as they come, each with its prompt."""
    engine.check_idle()
    streams, seen = Streams(), Seen()
    due: dict[str, float] = {}
    with _watched(engine, seen):
        begin, upcoming = time.perf_counter(), 0
        while upcoming < len(workload) or engine.has_work:
            now = time.perf_counter() - begin
            while upcoming < len(workload) and workload[upcoming].arrival <= now:
                each, id = workload[upcoming], str(upcoming)
                params = SamplingParams(temperature=0.0, max_tokens=each.output, ignore_eos=True)
                due[id] = begin + each.arrival
                engine.add(id, prompts[upcoming][: each.prompt], params)
                upcoming += 1
            if engine.has_work:
                streams.step(engine)
            else:
                time.sleep(_IDLE_SECONDS)
        seen.seconds = time.perf_counter() - begin - workload[0].arrival
    ids = [str(i) for i in range(len(workload))]
    seen.first = [streams.stamps[id][0] - due[id] for id in ids]
    seen.end = [streams.stamps[id][-1] - due[id] for id in ids]
    seen.tokens = [streams.tokens[id] for id in ids]
    return seen


@contextmanager
def _watched(engine: Engine, seen: Seen) -> Iterator[None]:
    """Note each step of an engine: where it drafts, as its speculator is told of them, and
    otherwise by when the engine has read them."""
    if engine.speculator is not None:
        with _watched_speculator(engine, seen):
            yield
        return
    watched: Any = engine
    collect, last = watched._collect, [0.0]

    def collecting(step: Sequence[Microbatch]) -> Any:
        progress = collect(step)
        now = time.perf_counter()
        rows = [each for microbatch in step for each in microbatch.scheduled]
        seen.steps.append(StepSeen.of(rows, now - max(last[0], step[0].sent)))
        last[0] = now
        return progress

    watched._collect = collecting
    try:
        yield
    finally:
        del watched._collect


@contextmanager
def _watched_speculator(engine: Engine, seen: Seen) -> Iterator[None]:
    speculator: Any = engine.speculator
    read, propose = speculator.times.read, speculator._propose

    def reading(step: Sequence[Microbatch], now: float) -> Any:
        timed = read(step, now)
        if timed is not None:
            rows = [each for microbatch in step for each in microbatch.scheduled]
            seen.steps.append(StepSeen.of(rows, timed.seconds))
        return timed

    def proposing(*given: Any) -> Any:
        drafts = propose(*given)
        if speculator.drafter.rounds.seconds:
            seen.rounds.append(speculator.drafter.rounds)
        return drafts

    speculator.times.read, speculator._propose = reading, proposing
    try:
        yield
    finally:
        del speculator.times.read, speculator._propose
