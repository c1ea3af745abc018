"""Pauses: what a change of plan costs requests that decode."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import replace
from typing import Any

from elastic.decoding import (
    CONTEXT,
    RUNNING,
    begin_decoding,
    check_all_decode,
    dispersion,
    largest,
    steady_gaps,
)
from elastic.loop import STATES, ChangeClock, Streams
from elastic.targets import LADDER, Target, change_label, first_visit
from tqdm import tqdm

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.start import start_engine
from fjx.outputs import SwitchRecord
from fjx.sharding.costs.difference import difference

NEW_PLAN = ("after",)
"""States whose gaps end with a token of the new plan: the switch comes behind the last old step."""
_SETTLING_STEPS = 2
"""Steps after the switch that still count as the change: the first tokens of the new plan."""


def measure_pauses(engine_config: EngineConfig, repeats: int) -> dict[str, Any]:
    """Each change of the ladder, so many times; back at its first plan after each round."""
    engine = start_engine(replace(engine_config, mesh="single"))
    visited = first_visit(engine, LADDER)
    before = engine.stats().compiles
    measured: dict[str, list[dict[str, Any]]] = {}
    with tqdm(total=repeats * len(LADDER), desc="Pauses", unit="change") as bar:
        for target in LADDER * repeats:
            one = _measure_one(engine, begin_decoding(engine), target)
            measured.setdefault(one["change"], []).append(one)
            bar.update()
    compiles = Counter(engine.stats().compiles) - Counter(before)
    return {
        "running_requests": RUNNING,
        "context_tokens": CONTEXT,
        "repeats": repeats,
        "first_visit": visited,
        "compiles_during_measurement": dict(compiles),
        "changes": {change: _summary(ones) for change, ones in measured.items()},
    }


def _measure_one(engine: Engine, streams: Streams, target: Target) -> dict[str, Any]:
    steady = statistics.median(steady_gaps(engine, streams))
    mesh, asked = target.mesh(), time.perf_counter()
    clock = ChangeClock.start(asked, engine.regranularize(mesh, "benchmark"))
    num_steps, pages, counted = 0, 0, False
    while engine.plans.active:
        if not counted:
            pages = len(engine.scheduler.pool.pages_in_use())
        streams.step(engine)
        num_steps += 1
        switch = engine.plans.status().switch
        counted = counted or (switch is not None and switch.dirty_pages > 0)
    record = engine.plans.status().last
    assert record is not None
    if record.state != "done":
        raise SystemExit(f"the change {change_label(record)} was aborted: {record.error}")
    for _ in range(_SETTLING_STEPS):
        streams.step(engine)
    check_all_decode(streams)
    gaps = streams.gaps(asked)
    steady_after = statistics.median(steady_gaps(engine, streams))
    worst = largest(gaps)
    # A gap that ends after the switch is a step of the new plan, which may take longer by itself.
    made = {state: steady_after if state in NEW_PLAN else steady for state in (*STATES, "after")}
    steps = [made[clock.state_of(gap, record)] for gap in gaps]
    extras = [gap.seconds - step for gap, step in zip(gaps, steps, strict=True)]
    by_state: dict[str, float] = {}
    for gap in gaps:
        state = clock.state_of(gap, record)
        by_state[state] = max(by_state.get(state, 0.0), gap.seconds)
    contexts = [len(request.tokens) for request in engine.scheduler.running]
    return {
        "change": change_label(record),
        "context_tokens_at_end": [min(contexts), max(contexts)],
        "steady_step_ms": 1e3 * steady,
        "steady_step_after_ms": 1e3 * steady_after,
        "largest_gap_ms": 1e3 * worst.seconds,
        "largest_extra_gap_ms": 1e3 * max(extras),
        "largest_extra_gap_in_steps": max(
            extra / step for extra, step in zip(extras, steps, strict=True)
        ),
        "largest_gap_over_the_old_plans_step_ms": 1e3 * (worst.seconds - steady),
        "largest_gap_state": clock.state_of(worst, record),
        "largest_gap_of_state_ms": {state: 1e3 * gap for state, gap in by_state.items()},
        "median_gap_during_ms": 1e3 * statistics.median(gap.seconds for gap in gaps),
        "steps_during": num_steps,
        "pause_ms": 1e3 * (record.pause_seconds or 0.0),
        "state_ms": {state: 1e3 * seconds for state, seconds in record.seconds.items()},
        **_bytes(engine, record, pages),
    }


def _bytes(engine: Engine, record: SwitchRecord, pages: int) -> dict[str, Any]:
    """What moved, against the difference of the plans with the pages that were in use."""
    tokens = pages * engine.executor.limits.page_size
    expected = difference(record.before, record.after, engine.plans.planner.graph, tokens)
    return {
        "pages_in_use": pages,
        "parameter_bytes": record.parameter_bytes,
        "kv_bytes": record.kv_bytes,
        "dirty_bytes": record.dirty_bytes,
        "moved_bytes": record.moved_bytes,
        "planned_bytes": record.planned_bytes,
        "difference_bytes": expected.total_bytes,
        "exact": record.moved_bytes - record.dirty_bytes
        == record.planned_bytes
        == expected.total_bytes,
    }


def _summary(ones: list[dict[str, Any]]) -> dict[str, Any]:
    """One change over all repeats."""
    figures = {
        name: dispersion([one[name] for one in ones])
        for name in (
            "steady_step_ms",
            "steady_step_after_ms",
            "largest_gap_ms",
            "largest_extra_gap_ms",
            "largest_extra_gap_in_steps",
            "largest_gap_over_the_old_plans_step_ms",
            "median_gap_during_ms",
            "pause_ms",
            "steps_during",
        )
    }
    states = {state for one in ones for state in one["state_ms"]}
    return {
        **figures,
        "largest_gap_state": dict(Counter(one["largest_gap_state"] for one in ones)),
        "state_ms": {
            state: dispersion([one["state_ms"].get(state, 0.0) for one in ones])
            for state in sorted(states)
        },
        "bytes_exact": all(one["exact"] for one in ones),
        "repeats": ones,
    }
