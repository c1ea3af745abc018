"""Three Ray nodes on this machine, and a tiny model served by them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.models.config import ModelConfig
from fjx.models.costs import model_graph
from fjx.pipeline.plan_target import Planner
from fjx.sharding.figures import Workload
from fjx.sharding.plan import Deployment, Device, Mesh, Plan, Stage
from fjx.sharding.topology import Topology
from tests.unit.engine.plan_cases import deep_engine
from tests.unit.engine.tiny import HF_CONFIG, LetterTokenizer

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from fjx.cluster.cluster import Patience
from fjx.cluster.orders import Setup, Weights
from fjx.cluster.start import Started, start_cluster

NODES = ("n0", "n1", "n2")
_MEMORY = 80 << 20  # bytes of a node's object store, which fjx does not use


@contextmanager
def ray_nodes() -> Iterator[Any]:
    """Three nodes with one processor each, on loopback alone."""
    with pytest.MonkeyPatch.context() as patch:
        # Otherwise Ray replaces 127.0.0.1 by an address that others reach.
        patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *_python_path()]))
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args=_node(NODES[0]))
        try:
            for name in NODES[1:]:
                add_node(cluster, name)
            ray.init(cluster.address, namespace="fjx", log_to_driver=False, logging_level="error")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster: Any, name: str) -> Any:
    """Another node on this machine."""
    return cluster.add_node(**_node(name))


def _node(name: str) -> dict[str, Any]:
    return {
        "num_cpus": 1,
        "object_store_memory": _MEMORY,
        "node_ip_address": "127.0.0.1",
        "node_name": name,
        "include_dashboard": False,
    }


def _python_path() -> list[str]:
    given = os.environ.get("PYTHONPATH")
    return [given] if given else []


def spread(*counts: int, nodes: tuple[str, ...] = NODES, microbatches: int = 1) -> Plan:
    """Stages of so many granules, on the nodes one after the other."""
    begin, stages = 0, []
    for number, count in enumerate(counts):
        device = Device(nodes[number % len(nodes)], "cpu", 0)
        stages.append(Stage(range(begin, begin + count), Mesh((device,))))
        begin += count
    return Plan(tuple(stages), microbatches, shared_devices=len(counts) > len(nodes))


def cluster_engine(
    plan: Plan,
    cache_dir: Path,
    patience: Patience | None = None,
    idle_seconds: float | None = None,
) -> tuple[Engine, Started]:
    """The model of `deep_engine` on a cluster."""
    limits = deep_engine().executor.limits
    config = ModelConfig.from_hf({**HF_CONFIG, "num_hidden_layers": 8})
    setup = Setup(
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
        return Planner(graph, topology, workload)

    started = start_cluster(
        setup, Deployment((plan,)), planner_for, patience=patience, idle_seconds=idle_seconds
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
        home=started.home,
    )
    return engine, started
