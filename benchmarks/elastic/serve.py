"""Serving requests as they arrive, with changes of plan in between."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from elastic.loop import ChangeClock, Streams
from elastic.targets import Target
from elastic.workload import StreamedRequest
from tqdm import tqdm

from fjx.engine.engine import Engine
from fjx.outputs import SwitchRecord

_LOAD_SECONDS = 0.1
_IDLE_SECONDS = 0.002


@dataclass
class Change:
    """A change of plan during the run."""

    clock: ChangeClock
    running: int
    """Requests in flight when it began."""
    waiting: int
    record: SwitchRecord | None = None


@dataclass
class Run:
    """What happened; times are those of ``time.perf_counter``."""

    begin: float
    streams: Streams = field(default_factory=Streams)
    arrivals: dict[str, float] = field(default_factory=dict)
    """When each request was due."""
    changes: list[Change] = field(default_factory=list)
    load: list[tuple[float, int, int]] = field(default_factory=list)
    end: float = 0.0


def serve(
    engine: Engine, requests: Sequence[StreamedRequest], targets: Sequence[Target], name: str
) -> Run:
    """Serve requests as they arrive, and begin a change whenever its share of the output tokens
    is there.

    The clock of arrivals stands still before a request of a later share than that of the next
    change: every change has requests to disturb, however long the one before took.
    """
    run = Run(time.perf_counter())
    streams, upcoming, left = run.streams, deque(requests), deque(targets)
    total = sum(request.output_tokens for request in requests)
    cancels = {r.id: r.cancel_after for r in requests if r.cancel_after is not None}
    delivered, held = 0, 0.0
    with tqdm(total=total, desc=name, unit="token") as bar:
        while upcoming or engine.has_work or engine.plans.active or left:
            now = time.perf_counter()
            done = len(targets) - len(left)
            share = len(requests) * (done + 1) / len(targets) if left else len(requests)
            stands_still = False
            while upcoming and upcoming[0].arrival <= now - run.begin - held and engine.queue_room:
                stands_still = len(run.arrivals) >= share
                if stands_still:
                    held = now - run.begin - upcoming[0].arrival
                    break
                request = upcoming.popleft()
                run.arrivals[request.id] = run.begin + held + request.arrival
                engine.add(request.id, request.prompt, request.params)
            due = delivered >= total * (done + 0.5) / (len(targets) + 0.5)
            none_left = not engine.has_work and (stands_still or not upcoming)
            if left and not engine.plans.active and (due or none_left):
                run.changes.append(_begin_change(engine, left.popleft()))
            if engine.has_work or engine.plans.active:
                progress = streams.step(engine)
                delivered += len(progress)
                bar.update(len(progress))
                for each in progress:
                    if each.request.num_output == cancels.get(each.request.id):
                        streams.take(engine.abort(each.request.id))
            else:
                time.sleep(_IDLE_SECONDS)
            _watch(engine, run)
    run.end = time.perf_counter()
    return run


def _begin_change(engine: Engine, target: Target) -> Change:
    stats, mesh, asked = engine.stats(), target.mesh(), time.perf_counter()
    clock = ChangeClock.start(asked, engine.regranularize(mesh, "benchmark"))
    return Change(clock, stats.num_requests_running, stats.num_requests_waiting)


def _watch(engine: Engine, run: Run) -> None:
    """Keep the record of a change that has ended, and the load from time to time."""
    if run.changes and run.changes[-1].record is None and not engine.plans.active:
        run.changes[-1].record = engine.plans.status().last
    now = time.perf_counter()
    if not run.load or now >= run.load[-1][0] + _LOAD_SECONDS:
        stats = engine.stats()
        run.load.append((now, stats.num_requests_running, stats.num_requests_waiting))
