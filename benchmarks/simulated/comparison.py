"""The runs of the cluster benchmark: all systems on a workload, ablations, other assumptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from placement_baselines import best_fit, first_fit, random_fit
from simulated.scenes import DATA, EAGER, RATE, Rungs, Shape, Stage, shape_name

from fjx.granularity.rung_scorers import FlexPipeRungScorer
from fjx.sharding.placement.placement import place
from fjx.sharding.topology.topology import Link
from fjx.sim.changes import Switching
from fjx.sim.run import Result
from fjx.sim.setup import SimSetup
from fjx.sim.sim_cluster import Tenancy, flexpipe_hosts, tenancies_from_pods
from fjx.sim.sim_speculation import DrafterProfile
from fjx.sim.systems import Foresight
from fjx.sim.workload import SimRequest, Workload
from fjx.speculation.policy.lengths import Fixed

OURS = (
    "fjx",
    "fjx, eager",
    "fjx, paced",
    "fjx, sharded",
    "fjx, speculation",
    "fjx, sharded, speculation",
)
"""Ours: the engine's defaults; less patience; with an objective between tokens; on a ladder of
sharded stages; and with drafts, by defaults and on sharded stages."""
SLOW_NETWORK = Link(bytes_per_second=1.25e9, latency_seconds=20e-6)
"""10 Gb/s."""


def compare(
    stage: Stage, workload: Workload, *, peak: str | None = None, drafts: bool = True
) -> dict[str, Result]:
    """Every system on one workload; static ones in hindsight.

    Args:
        stage: What is served.
        workload: The requests.
        peak: Name of the static deployment of an operator who has to be ready for CV 8.
        drafts: Whether to run the systems that draft too: they take most of the time.
    """
    scene = stage.scene
    grid = {n: stage.run(stage.static(n), workload) for n in _names(scene.replicas, scene.others)}
    sharded = [stage.run(stage.static(name), workload) for name in _names(scene.sharded)]
    shared = [
        stage.run(
            stage.static(name, name="MuxServe-like", compute_share=0.5, memory_share=0.8), workload
        )
        for name in _names(scene.replicas)
    ]
    results = {f"static {stage.coarsest}": grid[stage.coarsest], "best static": best(grid.values())}
    results["best static, sharded"] = best(sharded)
    if peak is not None:
        results["static for CV 8"] = grid[peak]
    if scene.stages > 1:
        pool = stage.pool
        system = replace(stage.static(stage.coarsest, name="always-on pool"), deployment=pool)
        results["always-on pool"] = stage.run(system, workload)
    results["MuxServe-like"] = best(shared)
    rungs = stage.replicas
    systems = (
        stage.scale_out("ServerlessLLM-like", first_tier="disk", target=24, most=16),
        stage.scale_out("Tetris-like", first_tier="remote", target=8, most=16, max_num_seqs=8),
        Foresight(name="foresight", ladder=rungs.ladder, kv_tokens=rungs.kv_tokens),
        stage.elastic(),
        stage.elastic("fjx, eager", policy=EAGER),
        stage.elastic("fjx, paced", policy=stage.paced),
        stage.elastic("fjx, sharded", stage.sharded, policy=stage.paced),
    )
    results |= {system.name: stage.run(system, workload) for system in systems}
    if drafts:
        name = "fjx, speculation"
        results[name] = stage.run(stage.elastic(name), workload, drafting=DrafterProfile())
        name = "fjx, sharded, speculation"
        system = stage.elastic(name, stage.sharded, policy=stage.paced)
        results[name] = stage.run(system, workload, drafting=DrafterProfile())
    return results


def best_static(stage: Stage, workload: Workload) -> Result:
    """The best deployment of pipelines that does not change, in hindsight."""
    names = _names(stage.scene.replicas, stage.scene.others)
    return best(stage.run(stage.static(name), workload) for name in names)


def best(results: Iterable[Result]) -> Result:
    """Who serves the most requests well; of those within half a point, who holds the fewest
    devices."""
    several = list(results)
    most = max(each.metrics.attainment for each in several)
    good = [each for each in several if each.metrics.attainment >= most - 0.005]
    return min(good, key=lambda each: each.metrics.device_seconds)


def ablations(stage: Stage, workload: Workload) -> Iterator[tuple[str, Result]]:
    """Eager fjx with a part taken away or put in."""
    changed = {
        "eager, as above": {},
        "without KV pages copied ahead": {"switching": Switching(copies_ahead=False)},
        "by restart": {"switching": Switching(copies_ahead=False, loads_ahead=False)},
        "parameters from other devices": {"switching": Switching(from_host_memory=False)},
        "changes that cost nothing": {"switching": Switching(free=True)},
        "waiting requests stay where they are": {"rebalances": False},
        "30 s of pause before finer rungs": {"policy": replace(EAGER, finer_hold_seconds=30)},
        "FlexPipe's scorer": {"policy": replace(EAGER, scorer=FlexPipeRungScorer())},
        "more stages, not replicas": {"rungs": stage.stages},
        "more stages, FlexPipe's scorer": {
            "rungs": stage.stages,
            "policy": replace(EAGER, scorer=FlexPipeRungScorer()),
        },
        "objective between tokens (paced)": {"policy": stage.paced},
        "sharded stages": {"rungs": stage.sharded},
        "sharded stages, paced": {"rungs": stage.sharded, "policy": stage.paced},
    }
    for name, fields in changed.items():
        given = {"policy": EAGER} | fields
        yield name, stage.run(stage.elastic(name, **given), workload)
    for name, lengths in (("speculation, own lengths", None), ("speculation, 4 each", Fixed(4))):
        system = stage.elastic(name, policy=EAGER)
        yield name, stage.run(system, workload, drafting=DrafterProfile(), lengths=lengths)


def sensitivity(stage: Stage, seed: int, cv: float) -> Iterator[tuple[str, Result]]:
    """Eager fjx and the best static deployment under other assumptions."""
    usual = stage.workload("surges", cv, seed)
    for window in (15.0, 180.0):
        workload = stage.workload("surges", cv, seed, window=window)
        yield from _both(stage, workload, f"surges of {window:g} s")
    for factor in (0.5, 1.25):
        scaled = [_longer(request, factor) for request in usual]
        yield from _both(stage, scaled, f"lengths times {factor:g}")
    for objective in (2.0, 10.0):
        yield from _both(stage, usual, f"objective {objective:g} times alone", objective=objective)
    for name, switching in {
        "host memory at 5 GB/s": Switching(storage=replace(Switching().storage, host_rate=5e9)),
        "a pause of 1 s": Switching(pause_seconds=1.0),
        "half the service while copying": Switching(slowdown=0.5),
    }.items():
        system = stage.elastic(name, policy=EAGER, switching=switching)
        yield f"{name}, fjx", stage.run(system, usual)
    slow = replace(stage, between=SLOW_NETWORK)
    yield from _both(slow, usual, "10 Gb/s between hosts")
    fast = replace(stage)
    fast.setup = _with_nvlink(stage.setup)
    system = fast.elastic("NVLink", fast.sharded, policy=stage.paced)
    yield "NVLink within hosts, fjx sharded", fast.run(system, usual)
    static = best(fast.run(fast.static(name), usual) for name in _names(stage.scene.sharded))
    yield f"NVLink within hosts, {static.name}", static
    yield from _kv_memory(stage, seed)


def _with_nvlink(setup: SimSetup) -> SimSetup:
    return replace(setup, device=replace(setup.device, reduce_bytes_per_second=250e9))


def _kv_memory(stage: Stage, seed: int) -> Iterator[tuple[str, Result]]:
    """What it costs that a finer rung has no more KV memory: long answers on more stages, with the
    memory of the coarsest rung, and with all that is left beside the parameters."""
    name, coarsest = shape_name(stage.scene.others[0]), stage.replicas.kv_tokens
    full = stage.setup.kv_tokens(stage.deployments[name].replicas[0])
    long = [
        replace(request, output=64 * request.output, arrival=8 * request.arrival)
        for request in stage.workload("gamma", 1.0, seed)[: stage.requests // 16]
    ]
    for kv_tokens in (coarsest, full):
        label = f"outputs times 64, {RATE / 8:g}/s, static {name}, {kv_tokens} KV slots"
        yield label, stage.run(stage.static(name, kv_tokens=kv_tokens), long)


def placements(usual: Stage, seed: int, cv: float) -> Iterator[tuple[str, Result | None]]:
    """Eager fjx by who chooses its devices, with other tenants and two networks. None: there was
    no room to begin with."""
    workload = usual.workload("surges", cv, seed)
    pods = DATA / "cluster" / "openb_pod_list_default.csv"
    placers = {"fjx": place, "first fit": first_fit, "best fit": best_fit, "random": random_fit(1)}
    for share in (0.0, 0.3, 0.6) if pods.exists() else (0.0,):
        for between in (Stage.between, SLOW_NETWORK):
            tenancies: Sequence[Tenancy] = ()
            if share:
                seconds = workload[-1].arrival + 60
                devices = sum(flexpipe_hosts())
                tenancies = tenancies_from_pods(pods, devices, seconds, share, seed)
            stage = replace(usual, between=between, tenancies=tenancies)
            for name, placer in placers.items():
                stage.placer = placer
                label = f"tenants on {share:.0%}, {8e-9 * between.bytes_per_second:g} Gb/s, {name}"
                yield label, _maybe(stage, stage.replicas, workload)
                yield f"{label}, more stages", _maybe(stage, stage.stages, workload)


def _maybe(stage: Stage, rungs: Rungs, workload: Workload) -> Result | None:
    system = stage.elastic("fjx", rungs, policy=EAGER)
    try:
        return stage.run(system, workload)
    except RuntimeError:
        return None


def _longer(request: SimRequest, factor: float) -> SimRequest:
    prompt, output = (max(1, round(n * factor)) for n in (request.prompt, request.output))
    return replace(request, prompt=prompt, output=output)


def _both(
    stage: Stage, workload: Workload, name: str, **options: float
) -> Iterator[tuple[str, Result]]:
    system = stage.elastic("fjx", policy=EAGER)
    yield f"{name}, fjx", stage.run(system, workload, **options)
    names = _names(stage.scene.replicas, stage.scene.others)
    static = best(stage.run(stage.static(each), workload, **options) for each in names)
    yield f"{name}, {static.name}", static


def _names(*shapes: Sequence[Shape]) -> list[str]:
    return [shape_name(shape) for several in shapes for shape in several]
