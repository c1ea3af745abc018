"""What the elastic pipeline promises, measured in one run.

    python benchmarks/regranularize.py --output FILE.json --picture FILE.svg

- *identity*: requests with a real trace's arrivals and lengths stream while the plan changes again
  and again; every token is compared with that of an engine whose plan never changed.
- *pause*: 16 requests decode while the plan changes: inter-token gaps, bytes moved.
- *baseline*: the same changes by stopping, loading anew and computing every context again.
- *planner*: how long it takes to find a plan.

Prints JSON: figures with their dispersion, and what was run. The picture shows the identity run;
its run record (see `benchmarks.draw_run`) is written beside ``--output``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from draw_run import run_svg
from elastic.baseline import measure_restarts, ratios
from elastic.decoding import RUNNING
from elastic.identity import compare_with_unchanged
from elastic.pause import measure_pauses
from elastic.workload import trace_requests
from planner import WORKLOAD, places, uneven_graph
from report import about_this_run, write
from tqdm import tqdm

from fjx.config import EngineConfig
from fjx.sharding.partition.partition import partition

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / ".." / "shared" / "data"
PARTS = ("identity", "pause", "baseline", "planner")
PLANNER_GRANULES, PLANNER_STAGES, PLANNER_REPEATS = 64, (2, 4, 8, 16, 32), 20
MAX_MODEL_LEN = 1024
MAX_ROWS = 64
"""In a step: fewer sizes of programs than by default, for each of the plans' many stages."""


def main() -> None:
    """Measure and print."""
    options = parse_options()
    for path in filter(None, (options.output, options.picture)):
        path.parent.mkdir(parents=True, exist_ok=True)
    config = EngineConfig(
        model=options.model,
        dtype=options.dtype,
        granule_layers=options.granule_layers,
        drafter="off",  # a token a step: gaps are steps
        max_num_seqs=RUNNING,
        max_num_batched_tokens=MAX_ROWS,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_tokens=RUNNING * (MAX_MODEL_LEN + 16),
        seed=options.seed,
    )
    result: dict[str, Any] = {
        "about": about_this_run(),
        "model": options.model,
        "dtype": options.dtype,
        "max_num_seqs": RUNNING,
        "max_num_batched_tokens": MAX_ROWS,
    }
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "planner": planner_time,
        "identity": partial(identity, config, options),
        "pause": partial(measure_pauses, config, options.repeats),
        "baseline": partial(measure_restarts, config, options.repeats),
    }
    for name, measure in parts.items():
        if name in options.only:
            result[name] = measure()
            write(options.output, result)  # a part that fails later does not cost the others
    if "pause" in result and "baseline" in result:
        result["baseline_to_pause"] = ratios(result["pause"], result["baseline"])
    write(options.output, result)
    print(json.dumps(result, indent=2))


def identity(config: EngineConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Measure, draw the picture, and write the run record."""
    requests_of = partial(
        trace_requests,
        options.trace,
        options.prompts,
        count=options.requests,
        time_scale=options.time_scale,
        length_scale=options.length_scale,
        seed=options.seed,
    )
    result, record = compare_with_unchanged(config, requests_of, options.switches)
    if options.picture is not None:
        options.picture.write_text(run_svg(record), encoding="utf-8")
    if options.output is not None:
        beside = options.output.with_name(f"{options.output.stem}_run.json")
        beside.write_text(json.dumps(record) + "\n")
    return result


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("--model", default="smollm2-135m")
    add("--dtype", default="auto", help="auto, float32 or bfloat16")
    add("--granule-layers", type=int, help="must leave at least 8 granules")
    add("--requests", type=int, default=200)
    add("--switches", type=int, default=22, help="changes of plan while they stream [22]")
    add("--repeats", type=int, default=3, help="of each change whose pause is measured [3]")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS))
    add("--trace", type=Path, default=DATA / "traces" / "azure_llm_2023_conv.csv")
    add("--prompts", type=Path, default=DATA / "prompts", help="folder with the prompt files")
    add("--time-scale", type=float, default=2.0, help="seconds for each second of the trace [2]")
    add("--length-scale", type=float, default=0.5, help="of the trace's lengths [0.5]")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="also write the result to this file")
    add("--picture", type=Path, help="draw the identity run into this SVG file")
    return parser.parse_args()


def planner_time() -> dict[str, Any]:
    """Processor time of finding a plan, with a current plan of the most stages."""
    graph = uneven_graph(PLANNER_GRANULES)
    current = partition(graph, places(max(PLANNER_STAGES)), WORKLOAD)
    result: dict[str, Any] = {"granules": PLANNER_GRANULES, "repeats": PLANNER_REPEATS}
    for stages in tqdm(PLANNER_STAGES, desc="Planner"):
        where, milliseconds = places(stages), []
        for _ in range(PLANNER_REPEATS):
            begin = time.process_time()
            partition(graph, where, WORKLOAD, current=current)
            milliseconds.append(1e3 * (time.process_time() - begin))
        result[f"{stages} stages"] = {
            "median_ms": statistics.median(milliseconds),
            "min_ms": min(milliseconds),
            "max_ms": max(milliseconds),
        }
    return result


if __name__ == "__main__":
    main()
