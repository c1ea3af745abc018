"""Speculation against plain decoding, policy by policy, on one engine in one run.

    python benchmarks/speculation.py --output FILE.json

- *loads*: 1, 4, 16 and 64 requests always in flight, with real prompts; tokens per second, time per
  output token, latency.
- *trace*: a real trace's arrivals and lengths, scaled for a small machine; latency percentiles.

With ``--record`` it writes which drafted tokens are right, and with ``--replay`` it takes that from
such a file, whatever the drafter proposes: so large shapes with random weights can be timed.

One engine serves all policies, with the same programs and a warm prefix cache; only who decides
about draft lengths is exchanged between two runs, and goes on learning in its next one. The drafter
has read the prompts in the run that gives the reference. In each
round all policies have their turn, in an order drawn anew, and each is compared with plain decoding
of the same round. Every token is compared with plain decoding's.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prompts import sample_prompts
from replay import Recorder, Recording, Replayed, read_recording, write_recording
from report import about_this_run, write
from tqdm import tqdm
from variants import ABLATIONS, OURS, PLAIN, POLICIES, PRUNING, Lineup, NeverStops, variants_of

from fjx.bench.traces import read_trace
from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.start import start_engine
from fjx.sampling_params import SamplingParams
from fjx.speculation.runtime.drafter import Drafter

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / ".." / "shared" / "data"
TRACE_POLICIES = (PLAIN, "fixed:2", "fixed:5", "batch", "confidence", "faser", OURS)
REQUESTS = {1: 6, 4: 16, 16: 48, 64: 128}
"""Requests of a run, for each load."""
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Ask:
    """One request: when it comes, and what it asks for."""

    arrival: float
    prompt: list[int]
    params: SamplingParams


@dataclass
class Run:
    """What a run's clients have got; times are seconds from its beginning."""

    tokens: list[list[int]]
    due: list[float]
    stamps: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0
    pruned: int = 0
    steps: int = 0

    def figures(self) -> dict[str, float]:
        """Throughput and latencies."""
        waits = [stamps[0] - due for stamps, due in zip(self.stamps, self.due, strict=True)]
        whole = [stamps[-1] - due for stamps, due in zip(self.stamps, self.due, strict=True)]
        tpot = [(s[-1] - s[0]) / (len(s) - 1) for s in self.stamps if len(s) > 1]
        each_token = [w / len(s) for w, s in zip(whole, self.stamps, strict=True)]
        total = sum(map(len, self.tokens))
        figures = {
            "output_tokens": total,
            "output_tokens_per_second": total / self.seconds,
            "steps": self.steps,
            "drafted_tokens": self.drafted,
            "accepted_tokens": self.accepted,
            "pruned_tokens": self.pruned,
        }
        named = {"ttft": waits, "tpot": tpot, "latency": whole, "latency_per_token": each_token}
        for name, values in named.items():
            figures[f"mean_{name}_ms"] = 1e3 * statistics.mean(values)
            for p in PERCENTILES:
                figures[f"p{p}_{name}_ms"] = 1e3 * float(np.percentile(values, p))
        return figures


def main() -> None:
    """Measure and print."""
    options = parse_options()
    config = EngineConfig(
        model=options.model,
        dtype=options.dtype,
        drafter=options.drafter,
        max_draft_length=options.max_draft_length,
        max_model_len=2048,
        load_random_weights=options.load_random_weights,
        pruning="auto" if PRUNING in options.policies else "off",
        seed=0,
    )
    engine = start_engine(config)
    if engine.speculator is None:
        raise SystemExit("this configuration never speculates")
    result: dict[str, Any] = {
        "about": about_this_run(),
        "model": options.model,
        "dtype": str(engine.executor.programs.dtype),
        "drafter": engine.speculator.drafter.name,
        "max_draft_length": options.max_draft_length,
        "temperature": options.temperature,
        "rounds": options.rounds,
        "loads": {},
    }
    if options.record is not None:
        write_recording(options.record, record(engine, options))
        return
    recording = None if options.replay is None else read_recording(options.replay)
    for load in options.loads:
        asks = prompt_asks(engine, options, REQUESTS[load])
        result["loads"][load] = compare(
            engine, asks, load, options.policies, options.rounds, recording
        )
        write(options.output, result)
    if options.trace is not None:
        asks, about = trace_asks(engine, options)
        policies = [name for name in TRACE_POLICIES if name in options.policies]
        compared = compare(engine, asks, None, policies, options.rounds, recording)
        result["trace"] = about | compared
        write(options.output, result)
    print(json.dumps(result, indent=2))


def prompt_asks(engine: Engine, options: argparse.Namespace, count: int) -> list[Ask]:
    """Real questions through the chat template, all there from the beginning."""
    texts = sample_prompts(options.prompts, count, options.seed)
    return [
        Ask(0.0, encode_chat(engine, text), sampling(options, i, options.max_tokens))
        for i, text in enumerate(texts)
    ]


def encode_chat(engine: Engine, text: str) -> list[int]:
    """Tokens of a user's message."""
    rendered = engine.tokenizer.apply_chat_template([{"role": "user", "content": text}])
    return engine.tokenizer.encode(rendered, add_special_tokens=False)


def sampling(options: argparse.Namespace, index: int, max_tokens: int) -> SamplingParams:
    """Of the request of this number."""
    return SamplingParams(
        temperature=options.temperature, seed=options.seed + index, max_tokens=max_tokens
    )


def trace_asks(engine: Engine, options: argparse.Namespace) -> tuple[list[Ask], dict[str, Any]]:
    """A trace's arrivals and lengths with real prompts, cut to their length."""
    entries = read_trace(options.trace, options.trace_requests)
    texts = sample_prompts(options.prompts, len(entries), options.seed)
    asks = []
    for i, (entry, text) in enumerate(zip(entries, texts, strict=True)):
        length = min(max(round(entry.input_length * options.length_scale), 16), 512)
        tokens = encode_chat(engine, text)
        outputs = min(max(round(entry.output_length * options.length_scale), 2), 256)
        arrival = entry.arrival * options.time_scale
        asks.append(Ask(arrival, tokens[-length:], sampling(options, i, outputs)))
    about = {
        "trace": options.trace.name,
        "requests": len(asks),
        "seconds_per_trace_second": options.time_scale,
        "length_factor": options.length_scale,
        "seconds": asks[-1].arrival,
    }
    return asks, about


def record(engine: Engine, options: argparse.Namespace) -> Recording:
    """What the drafter would propose at every token, and how much of it is right."""
    load = max(options.loads)
    asks = prompt_asks(engine, options, REQUESTS[load])
    recorders: list[Recorder] = []

    def recorded(drafter: Drafter) -> Drafter:
        recorders.append(Recorder(NeverStops(drafter)))
        return recorders[-1]

    longest = f"fixed:{options.max_draft_length}"
    lineup = Lineup(engine, variants_of([longest]), recorded)
    with lineup.read_along():
        reference = serve(engine, asks, load)
    with lineup.use(longest):
        serve(engine, asks, load)
    return recorders[0].recording(reference.tokens)


def compare(
    engine: Engine,
    asks: Sequence[Ask],
    load: int | None,
    policies: Sequence[str],
    rounds: int,
    recording: Recording | None,
) -> dict[str, Any]:
    """Serve the requests by each policy, round by round."""
    answers: list[list[int]] = []

    def replayed(drafter: Drafter) -> Drafter:
        return drafter if recording is None else Replayed(drafter, answers, recording)

    order, source = list(policies), random.Random(0)
    lineup = Lineup(engine, variants_of(policies), replayed)
    name = "trace" if load is None else f"load {load}"
    with lineup.read_along():
        reference = serve(engine, asks, load)
    engine.executor.compiler.wait_background()  # begun in the first steps
    answers += reference.tokens
    runs: dict[str, list[Run]] = {policy: [] for policy in policies}
    wrong = 0
    for _ in tqdm(range(rounds), desc=name, unit="round"):
        source.shuffle(order)
        for policy in order:
            with lineup.use(policy):
                run = serve(engine, asks, load)
            wrong += sum(a != b for a, b in zip(run.tokens, reference.tokens, strict=True))
            runs[policy].append(run)
    figures = {policy: [run.figures() for run in ones] for policy, ones in runs.items()}
    return {
        "requests": len(asks),
        "requests_with_wrong_tokens": wrong,
        "policies": {p: summary(ones, figures.get(PLAIN, ones)) for p, ones in figures.items()},
    }


def summary(ones: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds, and ratios to plain decoding of the same round."""
    medians: dict[str, Any] = {
        name: statistics.median(one[name] for one in ones) for name in ones[0]
    }
    for name, ratio in (
        ("output_tokens_per_second", lambda a, b: a / b),
        ("mean_tpot_ms", lambda a, b: b / a),
        ("mean_latency_per_token_ms", lambda a, b: b / a),
    ):
        values = [ratio(a[name], b[name]) for a, b in zip(ones, plain, strict=True)]
        medians[f"{name}_gain"] = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
        }
    return medians


def serve(engine: Engine, asks: Sequence[Ask], load: int | None) -> Run:
    """Serve the requests as they arrive, or so many at once."""
    run = Run([[] for _ in asks], [ask.arrival for ask in asks], [[] for _ in asks])
    upcoming = deque(enumerate(asks))
    steps, unfinished, begin = engine.stats().num_steps, 0, time.perf_counter()
    while upcoming or engine.has_work:
        now = time.perf_counter() - begin
        while upcoming and upcoming[0][1].arrival <= now and unfinished < (load or 10**9):
            index, ask = upcoming.popleft()
            engine.add(str(index), ask.prompt, ask.params)
            unfinished += 1
        if not engine.has_work:
            time.sleep(0.001)
            continue
        progress, now = engine.step(), time.perf_counter() - begin
        for each in progress:
            index = int(each.request.id)
            run.tokens[index] += each.token_ids
            run.stamps[index] += [now] * len(each.token_ids)
            if each.finish_reason is not None:
                unfinished -= 1
                run.drafted += each.request.drafted_tokens
                run.accepted += each.request.accepted_tokens
                run.pruned += each.request.pruned_tokens
    engine.check_idle()
    run.seconds, run.steps = time.perf_counter() - begin, engine.stats().num_steps - steps
    return run


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("--model", default="smollm2-135m")
    add("--dtype", default="auto", help="auto, float32 or bfloat16")
    add("--drafter", default="auto")
    add("--max-draft-length", type=int, default=8)
    add("--loads", type=int, nargs="*", choices=sorted(REQUESTS), default=sorted(REQUESTS))
    add("--policies", nargs="+", choices=(*POLICIES, *ABLATIONS), default=list(POLICIES))
    add("--rounds", type=int, default=3)
    add("--max-tokens", type=int, default=128)
    add("--temperature", type=float, default=0.0)
    add("--prompts", type=Path, default=DATA / "prompts", help="folder with the prompt files")
    add("--trace", type=Path, help="also replay this trace")
    add("--trace-requests", type=int, default=100)
    add("--time-scale", type=float, default=1.0, help="seconds for each second of the trace [1]")
    add("--length-scale", type=float, default=0.25, help="of the trace's lengths [0.25]")
    add("--seed", type=int, default=0)
    add("--record", type=Path, help="only write which drafted tokens are right, to this file")
    add("--replay", type=Path, help="take from this file which drafted tokens are right")
    add("--load-random-weights", action="store_true", help="for --replay")
    add("--output", type=Path, help="also write the result to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
