"""The plain way to change a plan: stop the world, load anew, compute every context again."""

from __future__ import annotations

import gc
import logging
import statistics
import time
from dataclasses import replace
from itertools import product
from typing import Any

from elastic.decoding import CONTEXT, RUNNING, begin_decoding, dispersion, steady_gaps
from elastic.loop import Streams
from tqdm import tqdm

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.start import start_engine
from fjx.sampling_params import SamplingParams

MESHES = ("pipeline-2", "pipeline-4", "pipeline-8", "single")
STAGES = {"single": 1, "pipeline-2": 2, "pipeline-4": 4, "pipeline-8": 8}
_STEADY_STEPS = 10
WAYS = {"warm-up": True, "programs at first use": False}
"""Whether the new engine has all programs before it serves, or gets each when a step wants it."""


def measure_restarts(engine_config: EngineConfig, repeats: int) -> dict[str, Any]:
    """Each change of the ladder by starting anew in the same process.

    Python, JAX and the kernels are loaded already, and all programs come from the persistent cache:
    one round, which may compile, goes before the measured ones.
    """
    measured: dict[str, dict[str, list[dict[str, float]]]] = {}
    rounds = [(None, True)] + [way for way in WAYS.items() for _ in range(repeats)]
    held = [_started(replace(engine_config, mesh="single"))]
    before = "single"
    # It says for each program that it was not there in time, which one of the ways intends.
    logging.getLogger("fjx.pipeline.compiler").setLevel(logging.ERROR)
    for (way, warmup), mesh in tqdm(list(product(rounds, MESHES)), desc="Restarts"):
        figures = _restart(held, replace(engine_config, mesh=mesh, warmup=warmup))
        if way is not None:
            change = f"{STAGES[before]}->{STAGES[mesh]}"
            measured.setdefault(change, {}).setdefault(way, []).append(figures)
        before = mesh
    return {
        "running_requests": RUNNING,
        "context_tokens": CONTEXT,
        "repeats": repeats,
        "changes": {
            change: {way: _summary(ones) for way, ones in ways.items()}
            for change, ways in measured.items()
        },
    }


def _started(config: EngineConfig) -> Engine:
    engine = start_engine(config, progress=False)
    for replica in engine.replicas:
        replica.executor.retire()  # compiles nothing in the background, which would take time
    return engine


def _restart(held: list[Engine], config: EngineConfig) -> dict[str, float]:
    """Let the engine in ``held`` decode, put a new one in its place, and go on with its
    requests."""
    streams = begin_decoding(held[0])
    steady = statistics.median(steady_gaps(held[0], streams, _STEADY_STEPS))
    prompts = _known_tokens(held[0])
    held.clear()
    gc.collect()
    dropped = time.perf_counter()
    engine = _started(config)
    loaded = time.perf_counter()
    held.append(engine)
    after = Streams()
    params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
    for id, tokens in prompts.items():
        engine.add(id, tokens, params)
    while len(after.stamps) < len(prompts):
        after.step(engine)
    gaps = [after.stamps[id][0] - streams.stamps[id][-1] for id in prompts]
    return {
        "steady_step_ms": 1e3 * steady,
        "load_ms": 1e3 * (loaded - dropped),
        "recompute_ms": 1e3 * (max(stamps[0] for stamps in after.stamps.values()) - loaded),
        "smallest_gap_ms": 1e3 * min(gaps),
        "median_gap_ms": 1e3 * statistics.median(gaps),
        "largest_gap_ms": 1e3 * max(gaps),
        "largest_extra_gap_ms": 1e3 * (max(gaps) - steady),
    }


def _known_tokens(engine: Engine) -> dict[str, list[int]]:
    """Prompt and output of each request that runs."""
    return {request.id: list(request.tokens) for request in engine.scheduler.running}


def _summary(ones: list[dict[str, float]]) -> dict[str, Any]:
    return {name: dispersion([one[name] for one in ones]) for name in ones[0]}


def ratios(pause: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """How much longer the plain way stops clients, by change; of its two ways the faster one
    counts."""
    result = {}
    for change, ours in pause["changes"].items():
        ways = baseline["changes"][change]
        way = min(ways, key=lambda way: ways[way]["largest_extra_gap_ms"]["median"])
        theirs = ways[way]
        extra = theirs["largest_extra_gap_ms"]["median"]
        result[change] = {
            "way": way,
            "to_largest_extra_gap": extra / ours["largest_extra_gap_ms"]["median"],
            "to_largest_extra_gap_at_worst": theirs["largest_extra_gap_ms"]["min"]
            / ours["largest_extra_gap_ms"]["max"],
            "smallest_gap_to_largest_extra_gap": theirs["smallest_gap_ms"]["median"]
            / ours["largest_extra_gap_ms"]["median"],
            "largest_gap_to_largest_gap": theirs["largest_gap_ms"]["median"]
            / ours["largest_gap_ms"]["median"],
            "to_pause": extra / ours["pause_ms"]["median"],
        }
    return result
