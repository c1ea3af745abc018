"""What faults of workers cost: requests, tokens, seconds.

    python benchmarks/cluster_faults.py --output benchmarks/results/cluster_faults.json

Serves a model in stages on Ray nodes of this machine, with a fixed number of requests in flight,
half of them greedy and half sampled with a seed. At random moments a random worker is killed, hangs
(is stopped for good), is cut off (its node's network leads nowhere for a while; it takes the right
to make network namespaces), is cut off from its neighbour alone, or is slow (is stopped most of the
time): see `faults`. Every
request's tokens are compared with those that it gets alone in one process without Ray. Prints JSON:
requests lost, tokens that are wrong, the seconds from a fault to the next token that any request
gets once the lost worker is replaced, tokens a second while a worker is slow, and, from before the
first fault, the milliseconds of a step without drafts in one process, on one node, and on all of
them, and those of a call to a worker.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from faults import KINDS, Load, Scene, params_of, spread_of
from local_cluster import networks as local_networks
from local_cluster.networks import Network
from local_cluster.nodes import add_node, local_nodes
from report import about_this_run, write

from fjx.cluster.cluster_plan_runtime import ClusterPlanRuntime
from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.start import start_engine
from fjx.sampling_params import SamplingParams

CALLS = 300
STEPS = 80
"""Whose time is taken."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--hangs", type=int, default=0)
    parser.add_argument("--cuts", type=int, default=0)
    parser.add_argument("--splits", type=int, default=0)
    parser.add_argument("--slow", type=int, default=0)
    parser.add_argument("--patience", type=float, default=5.0, help="cluster_patience [5]")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4, help="in flight [4]")
    parser.add_argument("--tokens", type=int, default=48, help="of each request [48]")
    parser.add_argument("--most-seconds", type=float, default=4.0, help="between two faults [4]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    if options.cuts or options.splits:
        local_networks.need_own_network()
    shape: dict[str, Any] = {
        "model": options.model,
        "dtype": options.dtype,
        "max_num_seqs": options.requests,
        "max_num_batched_tokens": 32,
        "max_model_len": 256,
        "seed": 0,
    }
    prompts, expected, step = alone(shape, options)
    with nodes_of(options) as (networks, start_node):
        config = EngineConfig(**shape, cluster="auto", cluster_patience=options.patience)
        engine = start_engine(config)
        try:
            steps = {"one process": step, "one node": step_milliseconds(engine, prompts, options)}
            spread(engine, options.nodes)
            steps[f"{options.nodes} nodes"] = step_milliseconds(engine, prompts, options)
            calls = call_milliseconds(engine)
            load = Load(engine, prompts, options.tokens, options.requests)
            plan_runtime = engine.plans.plan_runtime
            assert isinstance(plan_runtime, ClusterPlanRuntime)
            draw = random.Random(options.seed)
            result = measure(
                Scene(load, plan_runtime, draw, networks, start_node), expected, options
            )
            result |= {"step_milliseconds": steps, "call_milliseconds": calls}
        finally:
            for network in networks.values():
                network.heal()
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
    plan_runtime = engine.plans.plan_runtime
    assert isinstance(plan_runtime, ClusterPlanRuntime)
    worker, sent, answered = next(iter(plan_runtime.cluster.workers.values())), [], []
    for _ in range(CALLS):
        begin = time.perf_counter()
        call = worker.heartbeat()
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


def measure(
    scene: Scene, expected: Sequence[list[int]], options: argparse.Namespace
) -> dict[str, Any]:
    """Serve, do harm, compare."""
    load, engine = scene.load, scene.load.engine
    counts = {
        "kill": options.kills,
        "hang": options.hangs,
        "slow": options.slow,
        "cut": options.cuts,
        "split": options.splits,
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, count in counts.items():
        for _ in range(count):
            until = time.monotonic() + scene.draw.uniform(0.0, options.most_seconds)
            load.until(lambda until=until: time.monotonic() > until)
            found.setdefault(kind, []).append(KINDS[kind](scene))
            print(f"{kind}: {json.dumps(found[kind][-1])}", flush=True)
    while load.unfinished:
        load.step(keep_up=False)
    engine.check_idle()
    wrong = sum(
        token != right
        for kind, tokens in load.streams.values()
        for token, right in zip(tokens, expected[kind], strict=True)
    )
    return {
        "stages": engine.plans.deployment.replicas[0].granularity,
        "patience_seconds": options.patience,
        "requests": len(load.streams),
        "requests_lost": len(load.streams) - len(load.finished),
        "tokens": load.num_tokens,
        "tokens_wrong": wrong,
        "preemptions": engine.stats().num_preemptions,
        "faults": {
            kind: {"count": len(each), **summary(each), "each": each}
            for kind, each in found.items()
        },
    }


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each number of faults of a kind, over all of them."""
    names = [name for name, value in found[0].items() if isinstance(value, float)]
    return {name: spread_of([each[name] for each in found]) for name in names}


@contextmanager
def nodes_of(
    options: argparse.Namespace,
) -> Iterator[tuple[dict[str, Network], Callable[[str], None]]]:
    """The nodes: on loopback alone, or, where some are to be cut off, all but the first in networks
    of their own. Gives these by node, and what starts such a node."""
    names = [f"node-{number}" for number in range(options.nodes)]
    if not (options.cuts or options.splits):
        with local_nodes(names):
            yield {}, lambda name: None
        return
    with (
        local_networks.networks(len(names) - 1) as made,
        local_nodes(names[:1], address=local_networks.HERE) as cluster,
    ):
        networks = dict(zip(names[1:], made, strict=True))

        def start(name: str) -> None:
            with networks[name].inside():
                add_node(cluster, name, networks[name].address)

        for name in networks:
            start(name)
        yield networks, start


if __name__ == "__main__":
    main()
