"""Identity: a long run with many changes of plan, and the same requests without any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from draw_run import RunRecord
from elastic.loop import Streams
from elastic.record import run_record
from elastic.serve import Change, Run, serve
from elastic.targets import CYCLE, describe, first_visit
from elastic.workload import StreamedRequest

from fjx.bench.metrics import distribution
from fjx.config import EngineConfig
from fjx.engine.start import start_engine
from fjx.models.tokenizer import Tokenizer
from fjx.outputs import SwitchRecord

PERCENTILES = (95.0, 99.0)


@dataclass(frozen=True)
class Comparison:
    """The run's tokens against those of an engine whose plan never changed."""

    tokens_compared: int
    tokens_wrong: int
    """At positions that both have."""
    requests_wrong: int
    requests_lost: int
    """Ended in another way, or with another number of tokens, than they should have."""


def compare_with_unchanged(
    engine_config: EngineConfig,
    requests_of: Callable[[Tokenizer], tuple[list[StreamedRequest], dict[str, Any]]],
    num_switches: int,
) -> tuple[dict[str, Any], RunRecord]:
    """Serve the requests with changes of plan, then without, and compare.

    Args:
        engine_config: one stage.
        requests_of: makes requests, and what to say of them, with a tokenizer.
        num_switches: changes of plan, spread evenly over the output tokens.

    Returns:
        For JSON, and for the picture.
    """
    engine = start_engine(engine_config)
    requests, about = requests_of(engine.tokenizer)
    targets = [CYCLE[i % len(CYCLE)] for i in range(num_switches)]
    visited = first_visit(engine, targets[: len(CYCLE)])
    before, first_plan = engine.stats(), engine.plans.deployment
    run = serve(engine, requests, targets, "Changing")
    after = engine.stats()
    engine.check_idle()
    del engine
    unchanged = start_engine(replace(engine_config, mesh="single"))
    at_once = [replace(request, arrival=0.0, cancel_after=None) for request in requests]
    reference = serve(unchanged, at_once, (), "Unchanged")
    unchanged.check_idle()
    result = {
        "workload": about,
        "first_visit": visited,
        "run_seconds": run.end - run.begin,
        "unchanged_seconds": reference.end - reference.begin,
        **asdict(compare(requests, run.streams, reference.streams)),
        "hot_path_compiles": after.compiles.get("hot_path", 0),
        "compiles_during_run": sum(after.compiles.values()) - sum(before.compiles.values()),
        "preemptions": after.num_preemptions,
        "prompt_tokens_cached": after.prefix_cache_hits,
        **latencies(requests, run),
        **changes(run),
    }
    return result, run_record(engine_config.model, requests, first_plan, run)


def compare(
    requests: Sequence[StreamedRequest], changed: Streams, unchanged: Streams
) -> Comparison:
    """Compare token by token; a cancelled request with the beginning of the other."""
    compared = wrong = requests_wrong = lost = 0
    for request in requests:
        got, expected = changed.tokens.get(request.id, []), unchanged.tokens[request.id]
        how = "length" if request.cancel_after is None else "abort"
        lost += changed.ended.get(request.id) != how or len(got) != request.output_tokens
        differing = sum(a != b for a, b in zip(got, expected, strict=False))
        compared += min(len(got), len(expected))
        wrong += differing
        requests_wrong += differing > 0
    return Comparison(compared, wrong, requests_wrong, lost)


def changes(run: Run) -> dict[str, Any]:
    """The changes one by one, and what they have in common."""
    ended = [(change, change.record) for change in run.changes if change.record is not None]
    records = [record for _, record in ended]
    pauses = [record.pause_seconds for record in records if record.pause_seconds is not None]
    return {
        "changes_done": sum(record.state == "done" for record in records),
        "changes_aborted": sum(record.state == "aborted" for record in records),
        "changes_with_tokens_during_them": sum(
            tokens_during(run, change, record) > 0 for change, record in ended
        ),
        "bytes_as_planned": all(
            record.moved_bytes == record.planned_bytes + record.dirty_bytes for record in records
        ),
        **distribution("pause", pauses, (100.0,)),
        "changes": [
            {
                "at_second": change.clock.asked - run.begin,
                "running": change.running,
                "waiting": change.waiting,
                "tokens_during": tokens_during(run, change, record),
                **describe(record),
            }
            for change, record in ended
        ],
    }


def tokens_during(run: Run, change: Change, record: SwitchRecord) -> int:
    """Tokens that clients got from the moment that the change was asked for until it was done."""
    begin, end = change.clock.asked, change.clock.end(record)
    return sum(begin <= at <= end for stamps in run.streams.stamps.values() for at in stamps)


def latencies(requests: Sequence[StreamedRequest], run: Run) -> dict[str, float | None]:
    """TTFT and inter-token latency, over the whole run and over what a change touched."""
    first = [
        run.streams.stamps[request.id][0] - run.arrivals[request.id]
        for request in requests
        if request.id in run.streams.stamps
    ]
    gaps = run.streams.gaps()
    spans = [
        (change.clock.asked, change.clock.end(change.record))
        for change in run.changes
        if change.record is not None
    ]
    during: list[float] = []
    between: list[float] = []
    for gap in gaps:
        touched = any(gap.end > begin and gap.begin < end for begin, end in spans)
        (during if touched else between).append(gap.seconds)
    figures = distribution("ttft", first, PERCENTILES)
    figures |= distribution("itl", [gap.seconds for gap in gaps], (*PERCENTILES, 100.0))
    figures |= distribution("itl_during_changes", during, (*PERCENTILES, 100.0))
    return figures | distribution("itl_between_changes", between, (*PERCENTILES, 100.0))
