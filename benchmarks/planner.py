"""How long the planner takes: python benchmarks/planner.py [--granules 64] [--repeats 60]."""

from __future__ import annotations

import argparse
import json
import statistics
import time

from fjx.sharding.costs.figures import Place, Workload
from fjx.sharding.costs.graph import GranuleGraph, PieceCost
from fjx.sharding.partition.partition import partition
from fjx.sharding.plan.plan import Device, Mesh
from fjx.sharding.topology.topology import Link

WORKLOAD = Workload(rows=16, kv_tokens=1000, copied_tokens=100)


def main() -> None:
    """Print milliseconds of processor time by number of stages, with a current plan of the most."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--granules", type=int, default=64)
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    graph = uneven_graph(options.granules)
    current = partition(graph, places(max(options.stages)), WORKLOAD)
    result = {}
    for stages in options.stages:
        where = places(stages)
        milliseconds = []
        for _ in range(options.repeats):
            begin = time.process_time()
            partition(graph, where, WORKLOAD, current=current)
            milliseconds.append(1000 * (time.process_time() - begin))
        result[stages] = {
            "median_ms": statistics.median(milliseconds),
            "min_ms": min(milliseconds),
            "max_ms": max(milliseconds),
        }
    print(json.dumps({"granules": options.granules, "stages": result}, indent=2))


def uneven_graph(granules: int) -> GranuleGraph:
    """Granules of five different costs."""
    return GranuleGraph(
        model="uneven",
        buckets=(16,),
        embed=piece(1e-4),
        granules=tuple(piece(1e-3 + 1e-4 * (i % 5)) for i in range(granules)),
        head=piece(2e-3),
    )


def piece(seconds: float) -> PieceCost:
    """A piece of 100 MB."""
    return PieceCost(
        layers=1,
        split_parameter_bytes=10**8,
        whole_parameter_bytes=10**4,
        kv_bytes_per_token=1536,
        seconds=((1, (seconds,)),),
        activation_bytes=(36864,),
    )


def places(stages: int) -> list[Place]:
    """One device a stage, of three speeds, with links."""
    meshes = [Mesh((Device("localhost", "cpu", i),)) for i in range(stages)]
    return [
        Place(mesh, 10**12, 1.0 + 0.1 * (i % 3), Link(1e9, 1e-5)) for i, mesh in enumerate(meshes)
    ]


if __name__ == "__main__":
    main()
