"""The simulator against the real engine, on this machine.

    python benchmarks/sim_validation.py --output FILE.json

For each kind of engine (one stage, stages on virtual CPU devices, a draft head) costs are
calibrated by runs of their own; then other workloads are served by the engine and by the simulator,
and TTFT, TPOT and output tokens a second are compared. Virtual devices share the cores, so there a
microbatch's pass through all stages is timed as a whole and simulated as one stage; what stages
gain by working at once is not validated here.

Prints a table; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simpy
from prompts import FILES, sample_prompts
from replay import Recorder
from report import about_this_run, write
from simulated.cases import CALIBRATION, CASES, DATA, LONGEST, TRACE, Case
from simulated.fit import Fit, fit_costs
from simulated.measure import Seen, serve

from fjx.bench.datasets import random_tokens
from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.start import start_engine
from fjx.regranularization.plan_target import make_cpu_devices
from fjx.scheduling.request import Request
from fjx.sim.engine_replica import EngineReplica
from fjx.sim.sim_speculation import DrafterProfile, RecordedDraft, SimSpeculation
from fjx.sim.steps import ReplicaLimits
from fjx.sim.timing import warm_up
from fjx.sim.workload import SimRequest
from fjx.speculation.policy.lengths import LengthPolicy, policy_by_name

PROMPTS = DATA / "prompts"
LIMIT = 0.15
"""Largest relative error that counts as right."""
ROWS, SEQUENCES = 128, 16
FIGURES = ("ttft", "tpot", "tokens_per_second")


@dataclass(frozen=True)
class Calibrated:
    """What the simulator knows of a kind of engine."""

    fit: Fit
    host_seconds: float
    drafting: DrafterProfile | None


def main() -> None:
    """Measure, simulate and print."""
    options = parse_options()
    make_cpu_devices("pipeline-4")
    warm_up()
    result: dict[str, Any] = {"about": about_this_run(), "limit": LIMIT, "engines": {}, "cases": []}
    share = 0.5 if options.quick else 1.0
    for kind in dict.fromkeys(case.engine for case in CASES):
        mesh, drafts = kind
        name = f"{mesh}, drafting" if drafts else mesh
        if not name.startswith(options.only):
            continue
        engine = start_engine(
            EngineConfig(
                model=options.model,
                mesh=mesh,
                drafter="head" if drafts else "off",
                draft_policy="fixed:3" if drafts else "off",
                max_num_seqs=SEQUENCES,
                max_num_batched_tokens=ROWS,
                max_model_len=LONGEST,
                enable_prefix_caching=False,
                seed=0,
            )
        )
        known = calibrate(engine, share)
        result["engines"][name] = about_fit(known)
        print(f"{name}: {result['engines'][name]}")
        for case in (each for each in CASES if each.engine == kind):
            if case.trace and not TRACE.exists():
                print(f"{case.name:28}skipped: {TRACE} is not there")
                continue
            result["cases"].append(compare(engine, known, case, options.repeats, share))
            print(line(result["cases"][-1]), flush=True)
            write(options.output, result)
    errors = [abs(case["error"][name]) for case in result["cases"] for name in FIGURES]
    result["within_limit"] = sum(error <= LIMIT for error in errors) / len(errors)
    result["largest_error"] = max(errors)
    write(options.output, result)
    print(f"{result['within_limit']:.0%} of {len(errors)} figures are within {LIMIT:.0%}")


def calibrate(engine: Engine, share: float) -> Calibrated:
    """Learn what this engine's steps cost, and what its drafter is like."""
    serve(engine, CALIBRATION[0].workload(7, 1.0), texts(engine, 5, 7))  # the first run is slow
    runs: list[Seen] = []
    drafts: list[tuple[RecordedDraft, ...]] = []
    for number, case in enumerate(CALIBRATION):
        workload = case.workload(100 + number, max(share, 0.6))
        with recorded(engine) as recorder:
            runs.append(serve(engine, workload, texts(engine, len(workload), 100 + number)))
        if recorder is not None:
            drafts += _drafts(recorder, runs[-1])
    fit = fit_costs([run.steps for run in runs], _buckets(engine))
    calibrated = Calibrated(fit, 0.0, _drafting(engine, runs, drafts) if drafts else None)
    if drafts:  # no step is sent before the one before is read: the host's time is part of each
        return calibrated
    return replace(calibrated, host_seconds=_host_seconds(engine, calibrated, runs[0], share))


@contextmanager
def recorded(engine: Engine) -> Iterator[Recorder | None]:
    """Keep what an engine's drafter proposes meanwhile; None: it has none."""
    if engine.speculator is None:
        yield None
        return
    drafter = engine.speculator.drafter
    recorder = Recorder(drafter)
    engine.speculator.drafter = recorder  # type: ignore[assignment]
    try:
        yield recorder
    finally:
        engine.speculator.drafter = drafter


def _host_seconds(engine: Engine, known: Calibrated, alone: Seen, share: float) -> float:
    """What a lone request waits for besides its step: the host, and the client's own loop."""
    case = CALIBRATION[0]
    workload = case.workload(100, max(share, 0.6))
    simulated = simulate(engine, known, workload, "fixed:3", seed=0)
    late = [a - b for a, b in zip(alone.first, simulated[0], strict=True)]
    return max(statistics.median(late), 0.0)


def _drafting(
    engine: Engine, runs: Sequence[Seen], drafts: Sequence[tuple[RecordedDraft, ...]]
) -> DrafterProfile:
    """The drafts of the calibration, and what their rounds took."""
    rounds = [seconds for run in runs for _, seconds in run.rounds]
    return DrafterProfile(
        first_seconds=statistics.median(seconds[0] for seconds in rounds),
        round_seconds=statistics.median(s for seconds in rounds for s in seconds[1:]),
        request_seconds=0.0,
        longest=engine.speculator.drafter.longest,  # type: ignore[union-attr]
        stops=engine.speculator.drafter.stops,  # type: ignore[union-attr]
        recorded=tuple(drafts),
    )


def _drafts(recorder: Recorder, run: Seen) -> list[tuple[RecordedDraft, ...]]:
    """Of each request of a run that had one."""
    return [
        tuple(RecordedDraft(tuple(each.confidences), each.right) for each in of_request)
        for of_request in recorder.recording(run.tokens)
    ]


def compare(
    engine: Engine, known: Calibrated, case: Case, repeats: int, share: float
) -> dict[str, Any]:
    """A case on the engine and in the simulator; of the repeats the median counts."""
    measured, predicted = [], []
    for seed in range(repeats):
        workload = case.workload(seed, share)
        if engine.speculator is not None:
            engine.speculator.policy = policy_by_name(case.policy)
        seen = serve(engine, workload, texts(engine, len(workload), seed))
        measured.append(figures(workload, seen.first, seen.end))
        first, end = simulate(engine, known, workload, case.policy, seed)
        predicted.append(figures(workload, first, end))
    ours, theirs = (
        {name: statistics.median(each[name] for each in runs) for name in FIGURES}
        for runs in (predicted, measured)
    )
    return {
        **asdict(case),
        "measured": theirs,
        "predicted": ours,
        "error": {name: ours[name] / theirs[name] - 1 for name in FIGURES},
        "measured_values": measured,
    }


def simulate(
    engine: Engine, known: Calibrated, workload: Sequence[SimRequest], policy: str, seed: int
) -> tuple[list[float], list[float]]:
    """Seconds from arrival to first and to last token of each request, as the simulator sees it."""
    env, heard, limits = simpy.Environment(0.0), _Heard(), engine.executor.limits
    sizes = ReplicaLimits(
        num_pages=limits.num_pages,
        page_size=limits.page_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_draft_rows=limits.max_draft_rows,
    )
    speculation = None
    if known.drafting is not None:
        rule: LengthPolicy = policy_by_name(policy)
        speculation = SimSpeculation(known.drafting, seed, rule)
    replica = EngineReplica(
        *(env, sizes, known.fit.costs, engine.executor.plan.microbatches, heard),
        longest=max(each.prompt + each.output for each in workload),
        speculation=speculation,
        host_seconds=known.host_seconds,
    )

    def arrivals() -> Any:
        for number, each in enumerate(workload):
            yield env.timeout(each.arrival - env.now)
            replica.add(each.to_engine(number, each.arrival))

    env.process(arrivals())
    env.run()
    replica.close()
    times = [
        [at[i] - each.arrival for i, each in enumerate(workload)] for at in (heard.first, heard.end)
    ]
    return times[0], times[1]


class _Heard:
    """When the tokens of simulated requests came."""

    def __init__(self) -> None:
        self.first: dict[int, float] = {}
        self.end: dict[int, float] = {}

    def first_token(self, request: Request, now: float) -> None:
        self.first[request.index] = now

    def ended(self, request: Request, now: float) -> None:
        self.end[request.index] = now

    def stepped(self, now: float, seconds: float) -> None:
        pass


def figures(
    workload: Sequence[SimRequest], first: Sequence[float], end: Sequence[float]
) -> dict[str, float]:
    """Means over requests, and output tokens a second."""
    gaps = [
        (b - a) / (each.output - 1)
        for a, b, each in zip(first, end, workload, strict=True)
        if each.output > 1
    ]
    last = max(each.arrival + after for each, after in zip(workload, end, strict=True))
    tokens = sum(each.output for each in workload)
    return {
        "ttft": statistics.fmean(first),
        "tpot": statistics.fmean(gaps),
        "tokens_per_second": tokens / (last - workload[0].arrival),
    }


def texts(engine: Engine, count: int, seed: int) -> list[list[int]]:
    """Prompts, each longer than any request's: real ones one after the other where they are at
    hand."""
    source = random.Random(seed)
    if not all((PROMPTS / name).exists() for name in FILES):
        return [list(random_tokens(LONGEST, source)) for _ in range(count)]
    pool = sample_prompts(PROMPTS, 300, seed)
    prompts = []
    for _ in range(count):
        tokens: list[int] = []
        while len(tokens) < LONGEST:
            tokens += engine.tokenizer.encode(source.choice(pool))
        prompts.append(tokens)
    return prompts


def about_fit(known: Calibrated) -> dict[str, Any]:
    """A calibration in numbers."""
    about = {key: value for key, value in asdict(known.fit).items() if key != "costs"}
    about["host_seconds"] = known.host_seconds
    if known.drafting is not None:
        drafts = [each for of_request in known.drafting.recorded for each in of_request]
        about["first_draft_seconds"] = known.drafting.first_seconds
        about["draft_seconds"] = known.drafting.round_seconds
        about["right_tokens_a_draft"] = float(np.mean([each.right for each in drafts]))
    return about


def line(case: dict[str, Any]) -> str:
    """A row of the table: predicted / measured, and the error."""
    parts = [f"{case['name']:28}"]
    for name, unit, scale in zip(FIGURES, ("ms", "ms", "/s"), (1e3, 1e3, 1.0), strict=True):
        ours, theirs = scale * case["predicted"][name], scale * case["measured"][name]
        parts.append(f"{name} {ours:7.1f} / {theirs:7.1f} {unit} {case['error'][name]:+6.1%}")
    return "  ".join(parts)


def _buckets(engine: Engine) -> tuple[int, ...]:
    return engine.executor.limits.row_buckets


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="kinds of engines whose names begin so")
    parser.add_argument("--quick", action="store_true", help="half the requests")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
