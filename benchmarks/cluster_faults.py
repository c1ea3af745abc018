"""What killed workers cost: requests, tokens, seconds.

    python benchmarks/cluster_faults.py --output benchmarks/results/cluster_faults.json

Serves a model in stages on Ray nodes of this machine (loopback alone), with a fixed number of
requests in flight, half of them greedy and half sampled with a seed. At random moments a random
worker gets a SIGKILL. Every request's tokens are compared with those that it gets alone in one
process without Ray. Prints JSON: requests lost, tokens that are wrong, the seconds from a kill to
the next token that any request gets, and, from before the first kill, the milliseconds of a step
without drafts in one process, on one node, and on all of them, and those of a call to a worker.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from report import about_this_run, write

from fjx.cluster.home import ClusterHome
from fjx.cluster.local import local_nodes
from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.start import start_engine
from fjx.sampling_params import SamplingParams

CALLS = 300
STEPS = 80
"""Whose time is taken."""
PATIENCE_SECONDS = 300.0
"""Without a token after which the run counts as hanging."""


class Load:
    """Keeps requests in flight, and their tokens as they stream."""

    def __init__(self, engine: Engine, prompts: Sequence[list[int]], tokens: int) -> None:
        self.engine, self.prompts, self._tokens = engine, prompts, tokens
        self.streams: dict[str, tuple[int, list[int]]] = {}
        """For each request, which prompt it has, and the tokens so far."""
        self.finished: set[str] = set()
        self.last_token = time.monotonic()
        """When any request got one."""

    def add(self) -> None:
        """Begin another request."""
        number = len(self.streams)
        kind = number % len(self.prompts)
        self.engine.add(f"{number}", self.prompts[kind], params_of(kind, self._tokens))
        self.streams[f"{number}"] = kind, []

    def step(self) -> None:
        """Run a step."""
        for progress in self.engine.step():
            self.streams[progress.request.id][1].extend(progress.token_ids)
            self.last_token = time.monotonic()
            if progress.finish_reason is not None:
                self.finished.add(progress.request.id)
        if time.monotonic() - self.last_token > PATIENCE_SECONDS:
            raise RuntimeError(f"no token for {PATIENCE_SECONDS:g} s")

    @property
    def unfinished(self) -> int:
        """Requests in flight."""
        return len(self.streams) - len(self.finished)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4, help="in flight [4]")
    parser.add_argument("--tokens", type=int, default=48, help="of each request [48]")
    parser.add_argument("--most-seconds", type=float, default=4.0, help="between two kills [4]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    shape: dict[str, Any] = {
        "model": options.model,
        "dtype": options.dtype,
        "max_num_seqs": options.requests,
        "max_num_batched_tokens": 32,
        "max_model_len": 256,
        "seed": 0,
    }
    prompts, expected, step = alone(shape, options)
    names = [f"node-{number}" for number in range(options.nodes)]
    with local_nodes(names):
        engine = start_engine(EngineConfig(**shape, cluster="auto", cluster_patience=10.0))
        try:
            steps = {"one process": step, "one node": step_milliseconds(engine, prompts, options)}
            spread(engine, options.nodes)
            steps[f"{options.nodes} nodes"] = step_milliseconds(engine, prompts, options)
            result = measure(engine, prompts, expected, options, draw)
            result["step_milliseconds"] = steps
            result["call_milliseconds"] = call_milliseconds(engine)
        finally:
            engine.plans.close("the benchmark ends")
    result |= about_this_run()
    print(json.dumps(result, indent=2))
    write(options.output, result)


def alone(
    shape: dict[str, Any], options: argparse.Namespace
) -> tuple[list[list[int]], list[list[int]], dict[str, float]]:
    """Prompts, what each gets alone in this process, and how long its steps take."""
    engine = start_engine(EngineConfig(**shape))
    words = "The history of %s in ten short sentences:", "def %s(values):", "Explain %s to a child."
    topics = "bread", "sorting", "rivers", "prime numbers", "glass", "wind", "maps", "clocks"
    prompts = [engine.tokenizer.encode(words[i % 3] % topic) for i, topic in enumerate(topics)]
    expected = []
    for kind, prompt in enumerate(prompts):
        (request,) = engine.add(f"{kind}", prompt, params_of(kind, options.tokens))
        while engine.has_work:
            engine.step()
        expected.append(request.tokens[request.prompt_len :])
    step = step_milliseconds(engine, prompts, options)
    engine.plans.close("the reference is there")
    del engine, request
    gc.collect()
    return prompts, expected, step


def step_milliseconds(
    engine: Engine, prompts: Sequence[list[int]], options: argparse.Namespace
) -> dict[str, float]:
    """Time from step to step while so many requests decode greedily without drafts."""
    params = SamplingParams(
        temperature=0, max_tokens=2 * STEPS, max_draft_tokens=0, ignore_eos=True
    )
    for number in range(options.requests):
        engine.add(f"step {number}", prompts[number % len(prompts)], params)
    times = []
    while engine.has_work:
        engine.step()
        times.append(time.perf_counter())
    gaps = [1e3 * (b - a) for a, b in pairwise(times[-STEPS:])]
    return {"median": statistics.median(gaps), "most": max(gaps)}


def call_milliseconds(engine: Engine) -> dict[str, float]:
    """Time to send a call to an idle worker, and until it is answered."""
    home = engine.plans.home
    assert isinstance(home, ClusterHome)
    member, sent, answered = next(iter(home.cluster.members.values())), [], []
    for _ in range(CALLS):
        begin = time.perf_counter()
        call = member.beat()
        sent.append(1e3 * (time.perf_counter() - begin))
        call.result(10)
        answered.append(1e3 * (time.perf_counter() - begin))
    return {
        "send_median": statistics.median(sent),
        "answer_median": statistics.median(answered),
        "answer_99th_percentile": statistics.quantiles(answered, n=100)[-1],
    }


def spread(engine: Engine, stages: int) -> None:
    """Change to so many stages."""
    engine.regranularize(stages)
    while engine.plans.active:
        engine.step()
        engine.plans.wait(0.01)


def params_of(kind: int, tokens: int) -> SamplingParams:
    """How the requests of a prompt are sampled."""
    temperature = 0.0 if kind % 2 else 0.8
    return SamplingParams(
        temperature=temperature, top_p=0.95, seed=kind, max_tokens=tokens, ignore_eos=True
    )


def measure(
    engine: Engine,
    prompts: Sequence[list[int]],
    expected: Sequence[list[int]],
    options: argparse.Namespace,
    draw: random.Random,
) -> dict[str, Any]:
    """Serve, kill, compare."""
    home = engine.plans.home
    assert isinstance(home, ClusterHome)
    load, seconds, killed = Load(engine, prompts, options.tokens), [], []
    for _ in range(options.kills):
        until = time.monotonic() + draw.uniform(0.0, options.most_seconds)
        while time.monotonic() < until:
            keep_up(load, options.requests)
        seconds.append(kill(load, home, options.requests, draw, killed))
        print(f"kill {len(seconds)}: {killed[-1]}, {seconds[-1]:.1f} s", flush=True)
    while load.unfinished:
        load.step()
    engine.check_idle()
    wrong = sum(
        token != right
        for kind, tokens in load.streams.values()
        for token, right in zip(tokens, expected[kind], strict=True)
    )
    return {
        "kills": len(seconds),
        "stages": engine.plans.deployment.replicas[0].granularity,
        "requests": len(load.streams),
        "requests_lost": len(load.streams) - len(load.finished),
        "tokens": sum(len(tokens) for _, tokens in load.streams.values()),
        "tokens_wrong": wrong,
        "preemptions": engine.stats().num_preemptions,
        "recovery_seconds": {
            "median": statistics.median(seconds),
            "least": min(seconds),
            "most": max(seconds),
            "deviation": statistics.pstdev(seconds),
            "all": [round(each, 2) for each in seconds],
        },
        "killed": killed,
    }


def keep_up(load: Load, count: int) -> None:
    """Run a step with so many requests in flight."""
    while load.unfinished < count:
        load.add()
    load.step()


def kill(
    load: Load, home: ClusterHome, count: int, draw: random.Random, killed: list[str]
) -> float:
    """Kill a worker in mid-stream; seconds to the next token of the run that replaces it."""
    member = draw.choice(sorted(home.cluster.members.values(), key=str))
    killed.append(str(member))
    pid, repairs = member.call("pid").result(10), len(home.repairs)
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    while len(home.repairs) == repairs:
        keep_up(load, count)
    mended = time.monotonic()
    while load.last_token < mended:
        keep_up(load, count)
    return load.last_token - begun


if __name__ == "__main__":
    main()
