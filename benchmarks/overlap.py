"""Whether drafting hides behind a verification on one device: two streams in one program.

    python benchmarks/overlap.py --output FILE.json

Times the target's step, a draft of some tokens by its head, both one after the other as the engine
sends them, and both in one program by `fjx.pipeline.overlap`. On a CPU the annotation has no
effect: there the script only shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from report import about_this_run, write
from tqdm import tqdm

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.start import start_engine
from fjx.pipeline.compiler import Compiler, ProgramSpec
from fjx.pipeline.overlap import overlapped
from fjx.speculation.runtime.drafter import LookupOrHead
from fjx.speculation.runtime.head_drafter import HeadDrafter


def main() -> None:
    """Measure and print."""
    options = parse_options()
    config = EngineConfig(
        model=options.model,
        drafter="head",
        load_random_weights=options.load_random_weights,
        max_model_len=2048,
        kv_cache_tokens=options.kv_cache_tokens,
        warmup=False,
    )
    engine = start_engine(config)
    found = [
        measure(engine, rows, requests, options)
        for rows in options.rows
        for requests in options.requests
        if requests <= rows
    ]
    result = {
        "about": about_this_run(),
        "model": options.model,
        "device": str(jax.devices()[0].device_kind),
        "draft_tokens": options.draft_tokens,
        "repeats": options.repeats,
        "measured": found,
    }
    write(options.output, result)
    print(json.dumps(found, indent=2))


def measure(
    engine: Engine, rows: int, requests: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Milliseconds of a step of so many rows beside a draft for so many requests."""
    executor, head = engine.executor, head_of(engine)
    (shape,) = executor.pieces.shapes
    specs = {spec.key: spec for spec in executor.programs.stage(shape)}
    T = next(size for size in executor.limits.row_buckets if size >= rows)
    step = next(spec for key, spec in specs.items() if key[:2] == ("stage", T))
    step = replace(step, flat=False, background=False)
    drafting = {spec.key: spec for spec in head.programs.specs()}
    R = next(size for size in head.programs.request_buckets if size >= requests)
    draft = repeated(drafting[head.programs.key("next", R)], options.draft_tokens)
    platform = jax.devices()[0].platform
    both = overlapped(step, draft, ("both", T, R), platform)
    compiler = Compiler(cache_dir=None)
    compiler.register([step, draft, both])
    compiler.compile_all(progress=False)
    run_step, run_draft, run_both = (compiler.get(each.key) for each in (step, draft, both))

    def one_after_the_other(a: Sequence[Any], b: Sequence[Any]) -> Any:
        return run_step(*a), run_draft(*b)

    runs: dict[str, Callable[..., Any]] = {
        "step": lambda a, b: run_step(*a),
        "draft": lambda a, b: run_draft(*b),
        "in_turn": one_after_the_other,
        "overlapped": lambda a, b: run_both(*a, *b),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in tqdm(range(options.repeats + 1), desc=f"{rows} rows, {requests} requests"):
        for name, run in runs.items():
            a, b = zeros_of(step), zeros_of(draft)
            jax.block_until_ready((a, b))
            begun = time.perf_counter()
            jax.block_until_ready(run(a, b))
            if repeat:
                times[name].append(1e3 * (time.perf_counter() - begun))
    medians = {name: statistics.median(values) for name, values in times.items()}
    hidden = medians["in_turn"] - medians["overlapped"]
    return {
        "rows": T,
        "requests": R,
        "milliseconds": {
            name: {"median": medians[name], "min": min(values), "max": max(values)}
            for name, values in times.items()
        },
        "hidden_share_of_the_draft": hidden / medians["draft"],
    }


def head_of(engine: Engine) -> HeadDrafter:
    """The draft head that the engine has."""
    assert engine.speculator is not None
    drafter = engine.speculator.drafter
    if isinstance(drafter, LookupOrHead):
        drafter = drafter.head
    assert isinstance(drafter, HeadDrafter)
    return drafter


def repeated(spec: ProgramSpec, count: int) -> ProgramSpec:
    """A head's step, so many times, each from the estimates and tokens of the one before."""

    def chain(params, embed, last, ids, h, tokens, step, number, rows, pages):  # type: ignore[no-untyped-def]
        sure = None
        for i in range(count):
            h, tokens, sure, pages = spec.function(
                params, embed, last, ids, h, tokens, step, number + i, rows, pages
            )
        return tokens, sure, pages

    return replace(spec, key=("chain", spec.key, count), function=chain)


def zeros_of(spec: ProgramSpec) -> tuple[Any, ...]:
    """Arguments that a program can run on."""

    def zeros(leaf: Any) -> jax.Array:
        return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    arguments: tuple[Any, ...] = jax.tree.map(zeros, spec.arguments)
    return arguments


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("--model", default="smollm2-135m")
    add("--load-random-weights", action="store_true")
    add("--kv-cache-tokens", type=int, default=8192)
    add("--rows", type=int, nargs="+", default=[8, 32, 128], help="of the step")
    add("--requests", type=int, nargs="+", default=[1, 8, 32], help="that are drafted for")
    add("--draft-tokens", type=int, default=4)
    add("--repeats", type=int, default=20)
    add("--output", type=Path, help="also write the result to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
