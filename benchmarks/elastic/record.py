"""The long run as a run record, see `benchmarks.draw_run`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from draw_run import PlanSpan, RunRecord, Switch
from elastic.loop import STATES, Gap
from elastic.serve import Run
from elastic.targets import change_label
from elastic.workload import StreamedRequest

from fjx.outputs import SwitchRecord
from fjx.sharding.plan.plan import Deployment
from fjx.sharding.plan.plan_json import deployment_to_json

_BUCKETS = 200


def run_record(
    model: str, requests: Sequence[StreamedRequest], first: Deployment, run: Run
) -> RunRecord:
    """What the picture shows; ``first`` is the plan at the beginning."""
    seconds = run.end - run.begin
    ended = [(change.clock, change.record) for change in run.changes if change.record is not None]
    plans, begin, serving = [], 0.0, first
    for clock, record in ended:
        if record.state == "done":
            at = clock.end(record) - run.begin
            plans.append(_span(begin, at, serving))
            begin, serving = at, record.after
    plans.append(_span(begin, seconds, serving))
    stamps = run.streams.stamps
    first_tokens = [
        (stamps[request.id][0] - run.begin, stamps[request.id][0] - run.arrivals[request.id])
        for request in requests
        if request.id in stamps
    ]
    return RunRecord(
        title=f"{model}: {len(requests)} requests, {len(ended)} changes of plan",
        note=_note([record for _, record in ended]),
        seconds=round(seconds, 4),
        plans=plans,
        switches=[
            Switch(
                label=change_label(record),
                begin=round(clock.begin - run.begin, 4),
                state=record.state,
                phases=[(s, round(record.seconds[s], 6)) for s in STATES if s in record.seconds],
            )
            for clock, record in ended
        ],
        first_tokens=[(round(at, 4), round(ttft, 4)) for at, ttft in first_tokens],
        gaps=_buckets(run.streams.gaps(), run.begin, seconds),
        load=[(round(at - run.begin, 3), running, waiting) for at, running, waiting in run.load],
    )


def _span(begin: float, end: float, deployment: Deployment) -> PlanSpan:
    return PlanSpan(begin=round(begin, 4), end=round(end, 4), plan=deployment_to_json(deployment))


def _note(records: Sequence[SwitchRecord]) -> str:
    pauses = [record.pause_seconds for record in records if record.pause_seconds is not None]
    if not pauses:
        return ""
    moved = sum(record.moved_bytes for record in records)
    return (
        f"pause of a change: median {1e3 * float(np.median(pauses)):.2f} ms, at most "
        f"{1e3 * max(pauses):.2f} ms; {moved / 1e9:.2f} GB moved in all"
    )


def _buckets(gaps: Sequence[Gap], begin: float, seconds: float) -> list[tuple[float, ...]]:
    """Begin, end, median, 95th percentile and largest gap of equal parts of the run; empty ones are
    left out."""
    width = seconds / _BUCKETS
    parts: dict[int, list[float]] = {}
    for gap in gaps:
        parts.setdefault(int((gap.end - begin) / width), []).append(gap.seconds)
    return [
        (
            round(number * width, 4),
            round((number + 1) * width, 4),
            *(round(float(value), 5) for value in np.percentile(parts[number], (50, 95, 100))),
        )
        for number in sorted(parts)
    ]
