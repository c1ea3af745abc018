"""Models on a real fleet that others use: how many find room, and how much memory none can use.

    python benchmarks/placement.py --output FILE.json --picture FILE.svg

First the measure is checked: the openb fleet (Alibaba 2023) is filled by three policies of FGD's
simulator, and the share of free GPU that is fragmented is compared with the published curves. Then
the fleet is filled to 50 % and 80 % with its own pods (best fit, in an order drawn from the seed),
and models arrive until none fits any more, placed by each placer in turn.
`docs/placement-results.md` says what is assumed. Takes about half an hour.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from openb import (
    WHOLE,
    Nodes,
    Pod,
    Policy,
    Typical,
    arrivals,
    best_fit_policy,
    fgd_policy,
    random_policy,
    read_nodes,
    read_pods,
)
from placement_baselines import (
    best_fit,
    first_fit,
    fragmentation_gradient,
    random_fit,
)
from placement_picture import picture
from report import about_this_run, write

from fjx.errors import MemoryFitError
from fjx.sharding.costs.analytic import DeviceFigures, analytic_graph
from fjx.sharding.costs.figures import Workload
from fjx.sharding.partition.needs import PlanNeed, granularities
from fjx.sharding.placement.device_scorers import (
    DeviceScorer,
    FlexPipeDeviceScorer,
    FragmentScorer,
    demands_of,
)
from fjx.sharding.placement.placement import Placement, Placer, place
from fjx.sharding.plan.plan import Device
from fjx.sharding.topology.fleet import Fleet
from fjx.sharding.topology.topology import DeviceState, HostCopy, Link, Topology
from fjx.sim.hardware import MODELS as SIZES

GIB, TIB = 1 << 30, 1 << 40
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cluster"
NODES, PODS = "openb_node_list_gpu_node.csv", "openb_pod_list_default.csv"
PUBLISHED = "fgd_fragmentation_openb_default.csv"
PUBLISHED_NAMES = {"random": "01-Random", "best fit": "05-BestFit", "fgd": "06-FGD"}

# GiB and GB/s of NVIDIA's data sheets; G2 and G3 are not disclosed, and taken for A10 and A100.
GPUS = {
    "P100": (16, 732),
    "T4": (16, 320),
    "V100M16": (16, 900),
    "V100M32": (32, 900),
    "A10": (24, 600),
    "G2": (24, 600),
    "G3": (80, 2039),
}
A100 = DeviceFigures(flops_per_second=3.12e14, memory_bytes_per_second=2.039e12)
NODES_PER_RACK = 16
LINKS = {
    "within": Link(25e9, 5e-6),
    "within_rack": Link(12.5e9, 2e-5),
    "between": Link(5e9, 5e-5),
}
COPIES = 0.1
"""Share of the nodes that hold each model in host memory."""
WORKLOAD = Workload(rows=64, kv_tokens=8192)
OPT_66B, LLAMA_2_7B = SIZES["opt-66b"], SIZES["llama-2-7b"]
Model = tuple[PlanNeed, ...]
MODELS: dict[str, Model] = {
    sizes.model: granularities(
        analytic_graph(sizes, [1] * layers, [WORKLOAD.rows], A100), counts, WORKLOAD
    )
    for sizes, layers, counts in (
        (OPT_66B, 64, (4, 8, 16, 32)),
        (LLAMA_2_7B, 32, (1, 2, 4, 8)),
    )
}
MIXES = {
    "both": ("opt-66b", "llama-2-7b"),
    "opt-66b": ("opt-66b",),
    "llama-2-7b": ("llama-2-7b",),
}


def main() -> None:
    """Check the measure, place, and write what came out."""
    options = parse_options()
    for name in (NODES, PODS, PUBLISHED):
        if not (options.data / name).is_file():
            raise SystemExit(
                f"{options.data / name} is absent: the fleet is not part of this repository. Take "
                "it from github.com/hkust-adsl/kubernetes-scheduler-simulator (Apache-2.0) and say "
                "where it is with --data"
            )
    pods = read_pods(options.data / PODS)
    result: dict[str, Any] = {"about": about_this_run(), "seeds": options.seeds}
    if options.placers is None:
        result["fragmentation"] = fragmentation(options.data, pods, options.seeds)
        write(options.output, result)
    result["runs"] = []
    for seed in range(options.seeds):
        for level in options.levels:
            topology = filled_fleet(options.data, pods, level, seed)
            for mix in options.mixes:
                result["runs"] += runs(topology, level, mix, seed, options.placers)
                result["summary"] = summary(result["runs"])
                write(options.output, result)
    if options.picture is not None and options.placers is None:
        options.picture.write_text(picture(result))
    print(json.dumps(result["summary"], indent=2))


def fragmentation(data: Path, pods: list[Pod], seeds: int) -> dict[str, Any]:
    """Percent of the free GPU that is fragmented, when so many percent of the fleet's GPU have
    arrived: ours and the published, means and extremes over seeds."""
    with (data / PUBLISHED).open() as file:
        published = list(csv.DictReader(file))
    typical, result = Typical.of(pods), {}
    for name, theirs in PUBLISHED_NAMES.items():
        curves = [curve(data, pods, typical, name, seed) for seed in range(seeds)]
        rows = [row for row in published if row["sc_policy"] == theirs]
        ours = [statistics.mean(each[k] for each in curves) for k in range(101)]
        known = [statistics.mean(float(row[str(k)]) for row in rows) for k in range(101)]
        result[name] = {
            "ours": [round(value, 2) for value in ours],
            "published": [round(value, 2) for value in known],
            "at": {
                k: {
                    "ours": spread([each[k] for each in curves]),
                    "published": spread([float(row[str(k)]) for row in rows]),
                }
                for k in (20, 50, 80)
            },
            "largest_difference_up_to_80": max(
                abs(a - b) for a, b in zip(ours[:81], known[:81], strict=True)
            ),
        }
    return result


def curve(data: Path, pods: list[Pod], typical: Typical, name: str, seed: int) -> dict[int, float]:
    """Percent that is fragmented, by percent arrived: the mean over the pods of that percent."""
    nodes, draws = read_nodes(data / NODES), random.Random(seed)
    policies: dict[str, Callable[[], Policy]] = {
        "random": lambda: random_policy(draws),
        "best fit": lambda: best_fit_policy(draws),
        "fgd": lambda: fgd_policy(typical, draws),
    }
    policy, capacity, arrived = policies[name](), nodes.capacity, 0
    lost, free = typical.lost(nodes.cpu, nodes.gpu), capacity
    points = defaultdict[int, list[float]](list)
    for pod in arrivals(pods, draws):
        arrived += pod.gpus * pod.share
        node = put(nodes, pod, policy)
        if node is not None:
            lost[node] = typical.lost(nodes.cpu[[node]], nodes.gpu[[node]])[0]
            free -= pod.gpus * pod.share
        percent = round(100 * arrived / capacity)
        if percent > 100:
            return {k: statistics.mean(each) for k, each in points.items()}
        points[percent].append(100 * float(lost.sum()) / free)
    raise AssertionError("pods arrive without end")


def put(nodes: Nodes, pod: Pod, policy: Policy) -> int | None:
    """Place a pod; None: no node has room."""
    rooms = np.flatnonzero(nodes.fits(pod))
    if not len(rooms):
        return None
    node, devices = policy(nodes, pod, rooms)
    nodes.take(pod, node, devices)
    return node


def filled_fleet(data: Path, pods: list[Pod], level: float, seed: int) -> Topology:
    """The fleet with pods that want so much of its GPUs, and the memory that they leave."""
    nodes, draws = read_nodes(data / NODES), random.Random(seed)
    policy, wanted, arrived = best_fit_policy(draws), level * nodes.capacity, 0
    for pod in arrivals(pods, draws):
        arrived += pod.gpus * pod.share
        if arrived > wanted:
            break
        put(nodes, pod, policy)
    states = []
    for name, model, shares in zip(nodes.names, nodes.models, nodes.gpu, strict=True):
        gibibytes, bandwidth = GPUS[model]
        for index, share in enumerate(shares[shares >= 0].tolist()):
            free, speed = share * gibibytes * GIB // WHOLE, bandwidth / GPUS["G3"][1]
            device = Device(name, "gpu", index)
            states.append(DeviceState(device, free, speed, tenants=int(share < WHOLE)))
    return Topology(
        tuple(states),
        **LINKS,
        racks=tuple((n, f"rack-{i // NODES_PER_RACK}") for i, n in enumerate(nodes.names)),
        copies=tuple(
            HostCopy(host=name, model=model, age_seconds=draws.uniform(0, 3600))
            for name in nodes.names
            for model in MODELS
            if draws.random() < COPIES
        ),
    )


def placers(models: Sequence[Model], seed: int) -> dict[str, Placer]:
    """Who is compared."""
    plans = [plan for model in models for plan in model]
    scorer = FragmentScorer(demands_of(plans))
    return {
        "first fit": first_fit,
        "best fit": best_fit,
        "random": random_fit(seed),
        "fgd": fragmentation_gradient(plans),
        "flexpipe scorer": by_price(FlexPipeDeviceScorer()),
        "fjx, coarsest that fits": coarsest(by_price(scorer)),
        "fjx, coarsest, least hops": coarsest(by_price(scorer, hop_tolerance=0.0)),
        "fjx": by_price(scorer),
        "fjx, hops within 5%": by_price(scorer, hop_tolerance=0.05),
        "fjx, hops within 10%": by_price(scorer, hop_tolerance=0.1),
    }


def by_price(scorer: DeviceScorer, *, hop_tolerance: float = float("inf")) -> Placer:
    """Any pace will do."""
    return partial(place, scorer=scorer, tolerance=float("inf"), hop_tolerance=hop_tolerance)


def coarsest(placer: Placer) -> Placer:
    """The first plan that fits, as the baselines do it."""

    def placed(fleet: Fleet, candidates: Sequence[PlanNeed]) -> Placement:
        for candidate in candidates[:-1]:
            try:
                return placer(fleet, [candidate])
            except MemoryFitError:
                continue
        return placer(fleet, candidates[-1:])

    return placed


def runs(
    topology: Topology, level: float, mix: str, seed: int, names: Sequence[str] | None
) -> list[dict[str, Any]]:
    """One run of each placer, or of those with these names."""
    models = {name: MODELS[name] for name in MIXES[mix]}
    about = {"level": level, "mix": mix, "seed": seed}
    return [
        about | {"placer": name} | run(Fleet.of(topology), placer, models, seed)
        for name, placer in placers(list(models.values()), seed).items()
        if names is None or name in names
    ]


def run(fleet: Fleet, placer: Placer, models: dict[str, Model], seed: int) -> dict[str, Any]:
    """Models arrive, each as likely as any other that still fits, until none fits."""
    draws, open_models = random.Random(seed), list(models)
    placed: list[Placement] = []
    counts, refused, seconds = dict.fromkeys(models, 0), None, []
    free = int(fleet.free_bytes.sum())
    while open_models:
        name = draws.choice(open_models)
        begun = time.perf_counter()
        try:
            placement = placer(fleet, models[name])
        except MemoryFitError:
            open_models.remove(name)
            refused = refused or dict(counts)
            continue
        seconds.append(time.perf_counter() - begun)
        fleet = placement.occupy(fleet)
        counts[name] += 1
        placed.append(placement)
    parameters = sum(each.need.parameter_bytes for each in placed)
    return {
        "placed_before_first_refusal": refused,
        "placed": counts,
        "models_before_first_refusal": sum((refused or {}).values()),
        "models": sum(counts.values()),
        "parameters_tib": parameters / TIB,
        "free_before_tib": free / TIB,
        "left_tib": int(fleet.free_bytes.sum()) / TIB,
        "devices_per_model": sum(each.need.devices for each in placed) / len(placed),
        "median_hops_ms": 1e3 * statistics.median(each.transfer_seconds for each in placed),
        "cold_share": sum(each.cold_bytes for each in placed) / parameters,
        "placing_ms": 1e3 * statistics.mean(seconds),
    }


def summary(every: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and extremes over the seeds, by level, mix and placer."""
    groups = defaultdict[str, list[dict[str, Any]]](list)
    for each in every:
        groups[f"{each['level']:.0%}, {each['mix']}, {each['placer']}"].append(each)
    names = (
        *("models_before_first_refusal", "models", "parameters_tib", "left_tib"),
        *("devices_per_model", "median_hops_ms", "cold_share", "placing_ms"),
    )
    return {
        group: {name: spread([each[name] for each in found]) for name in names}
        for group, found in groups.items()
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, deviation and extremes."""
    return {
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("--data", type=Path, default=DATA, help="folder with the openb lists")
    add("--seeds", type=int, default=5)
    add("--levels", type=float, nargs="+", default=[0.5, 0.8])
    add("--mixes", nargs="+", choices=list(MIXES), default=["both", "opt-66b"])
    names = list(placers(list(MODELS.values()), 0))
    add(
        "--placers",
        nargs="+",
        choices=names,
        help="only these; no check of the measure, no picture",
    )
    add("--output", type=Path, help="also write the result to this file")
    add("--picture", type=Path, help="draw the result into this .svg file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
