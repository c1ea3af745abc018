"""A tiny model served by the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import pytest

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.models.config import ModelConfig
from fjx.models.costs import model_graph
from fjx.regranularization.plan_target import Planner, PlanTarget
from fjx.sharding.costs.figures import Workload
from fjx.sharding.plan.plan import Device, Mesh, Plan, Stage
from fjx.sharding.topology.topology import Topology
from tests.unit.engine.plan_cases import deep_engine
from tests.unit.engine.tiny import HF_CONFIG, LetterTokenizer

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from benchmarks.local_cluster import networks as local_networks
from benchmarks.local_cluster.nodes import add_node, local_nodes
from fjx.cluster.cluster import Timeouts
from fjx.cluster.messages import Weights, WorkerConfig
from fjx.cluster.start_workers import StartedCluster, start_cluster

NODES = ("n0", "n1", "n2")


def spread(*counts: int, nodes: tuple[str, ...] = NODES, microbatches: int = 1) -> Plan:
    """Stages of so many granules, on the nodes one after the other."""
    begin, stages = 0, []
    for number, count in enumerate(counts):
        device = Device(nodes[number % len(nodes)], "cpu", 0)
        stages.append(Stage(range(begin, begin + count), Mesh((device,))))
        begin += count
    return Plan(tuple(stages), microbatches, shared_devices=len(counts) > len(nodes))


def placed(*stages: tuple[int, str, tuple[int, ...]], microbatches: int = 1) -> Plan:
    """Stages of so many granules, each on devices of a node, split over them; stages may share
    devices."""
    begin, made = 0, []
    for count, host, indices in stages:
        devices = tuple(Device(host, "cpu", index) for index in indices)
        mesh = Mesh(devices, (("tensor", len(devices)),))
        made.append(Stage(range(begin, begin + count), mesh))
        begin += count
    return Plan(tuple(made), microbatches, shared_devices=True)


@contextmanager
def separate_networks(number: int) -> Iterator[list[local_networks.Network]]:
    """Nodes n1, n2 and so on in networks of their own, beside this process's n0."""
    with (
        local_networks.networks(number) as nets,
        local_nodes(["n0"], str(Path.cwd()), local_networks.HERE) as cluster,
    ):
        for index, net in enumerate(nets, start=1):
            with net.inside():
                add_node(cluster, f"n{index}", net.address)
        yield nets


def cluster_engine(
    plan: PlanTarget,
    cache_dir: Path,
    timeouts: Timeouts | None = None,
    idle_seconds: float | None = None,
    cpu_devices: int = 1,
    max_draft_rows: int = 0,
    known: Topology | None = None,
) -> tuple[Engine, StartedCluster]:
    """The model of `deep_engine` on a cluster."""
    limits = deep_engine(max_draft_rows=max_draft_rows).executor.limits
    config = ModelConfig.from_hf({**HF_CONFIG, "num_hidden_layers": 8})
    setup = WorkerConfig(
        config,
        granule_layers=1,
        limits=limits,
        dtype="float32",
        weights=Weights(None, scale=0.3, seed=3),
        cache_dir=cache_dir,
    )

    def planner_for(topology: Topology) -> Planner:
        graph = model_graph(config, jnp.dtype("float32"), 1, limits.row_buckets)
        workload = Workload(rows=limits.max_num_seqs, kv_tokens=16 * limits.num_pages)
        return Planner(graph, topology, workload, fragments=known is not None)

    started = start_cluster(
        setup,
        plan,
        planner_for,
        timeouts=timeouts,
        idle_seconds=idle_seconds,
        cpu_devices=cpu_devices,
        known=known,
    )
    engine_config = EngineConfig(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        seed=0,
    )
    engine = Engine(
        engine_config,
        started.executors,
        LetterTokenizer(),  # type: ignore[arg-type]
        started.planner,
        plan_runtime=started.plan_runtime,
    )
    return engine, started
