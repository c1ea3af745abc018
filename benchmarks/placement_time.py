"""How long it takes to place a model on a cluster of so many devices.

    python benchmarks/placement_time.py --output FILE.json --picture FILE.svg

Fleets are drawn: nodes of 8 devices, racks of 8 nodes, up to 80 GiB free on a device, three speeds.
The model is of the size of OPT-66B in 4, 16 or 32 stages, or in the best of 4 to 32; a microbatch
has 512 rows, so that links matter. Milliseconds of processor time, with the arrays made from the
topology counted in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from placement import A100, OPT_66B
from placement_time_picture import picture, title
from report import about_this_run, write

from fjx.errors import MemoryFitError
from fjx.sharding.costs.analytic import analytic_graph
from fjx.sharding.costs.figures import Workload
from fjx.sharding.partition.needs import granularities
from fjx.sharding.placement.placement import place
from fjx.sharding.plan.plan import Device
from fjx.sharding.topology.fleet import Fleet
from fjx.sharding.topology.topology import DeviceState, Link, Topology

GIB = 1 << 30
CASES = {
    "4 stages": (4,),
    "16 stages": (16,),
    "32 stages": (32,),
    "best of 4, 8, 16, 32": (4, 8, 16, 32),
}
WORKLOAD = Workload(rows=512, kv_tokens=8192)
TOLERANCES = ((0.0, 0.0), (float("inf"), 0.1), (float("inf"), float("inf")))
"""Of the pace, and of hops."""


def main() -> None:
    """Print and write processor time by case, tolerances and number of devices."""
    options = parse_options()
    graph = analytic_graph(OPT_66B, [1] * 64, [WORKLOAD.rows], A100)
    plans = {count: granularities(graph, [count], WORKLOAD)[0] for count in (4, 8, 16, 32)}
    result: dict[str, Any] = {"about": about_this_run(), "milliseconds": {}}
    for tolerances in TOLERANCES:
        for case, counts in CASES.items():
            name = f"{case}, {title(*tolerances)}"
            result["milliseconds"][name] = {
                devices: measured(devices, [plans[c] for c in counts], tolerances, options.seeds)
                for devices in options.devices
            }
            print(name, json.dumps(result["milliseconds"][name]), flush=True)
            write(options.output, result)
    if options.picture is not None:
        options.picture.write_text(picture(result["milliseconds"], list(CASES), TOLERANCES))


def measured(
    devices: int, plans: list[Any], tolerances: tuple[float, float], seeds: int
) -> dict[str, float]:
    """Median and extremes over drawn fleets."""
    tolerance, hop_tolerance = tolerances
    milliseconds, proven = [], 0
    for seed in range(seeds):
        topology = drawn_topology(devices, seed)
        begin = time.process_time()
        try:
            fleet = Fleet.of(topology)
            placement = place(fleet, plans, tolerance=tolerance, hop_tolerance=hop_tolerance)
            proven += placement.proven
        except MemoryFitError:
            proven += 1
        milliseconds.append(1000 * (time.process_time() - begin))
    return {
        "median": statistics.median(milliseconds),
        "min": min(milliseconds),
        "max": max(milliseconds),
        "proven": proven / seeds,
    }


def drawn_topology(devices: int, seed: int) -> Topology:
    """Fragments of any size."""
    draws = np.random.default_rng(seed)
    hosts = [f"node-{i}" for i in range(devices // 8)]
    speeds = draws.choice([0.5, 1.0, 2.0], len(hosts))
    free = draws.integers(0, 80 * GIB, (len(hosts), 8))
    return Topology(
        tuple(
            DeviceState(Device(host, "gpu", i), int(free[n, i]), float(speeds[n]))
            for n, host in enumerate(hosts)
            for i in range(8)
        ),
        within=Link(300e9, 5e-6),
        within_rack=Link(12.5e9, 2e-5),
        between=Link(5e9, 5e-5),
        racks=tuple((host, f"rack-{n // 8}") for n, host in enumerate(hosts)),
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("--devices", type=int, nargs="+", default=[104, 304, 1000, 3000, 10000])
    add("--seeds", type=int, default=9, help="fleets of each size")
    add("--output", type=Path, help="also write the result to this file")
    add("--picture", type=Path, help="draw the result into this .svg file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
