"""Several Ray nodes on one machine, on loopback alone: for tests and benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 80 << 20
"""Of each node: the least that Ray takes; fjx puts nothing into it."""


@contextmanager
def local_nodes(
    names: Sequence[str], python_path: str = "", address: str = LOOPBACK
) -> Iterator[Any]:
    """Nodes with one processor each, and this process connected to them.

    Args:
        names: of the nodes.
        python_path: where workers find modules that are not installed.
        address: of this process and all of these nodes.

    Returns:
        The `ray.cluster_utils.Cluster`.
    """
    import ray
    from ray.cluster_utils import Cluster

    path = os.pathsep.join(filter(None, (python_path, os.environ.get("PYTHONPATH"))))
    environment = {
        # Otherwise Ray replaces 127.0.0.1 by an address that other machines reach.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": path,
    }
    with (
        patch.dict(os.environ, environment),
        patch("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False),
    ):
        cluster = Cluster(initialize_head=True, head_node_args=_node(names[0], address))
        try:
            for name in names[1:]:
                add_node(cluster, name, address)
            ray.init(
                cluster.address,
                namespace="fjx",
                log_to_driver=False,
                logging_level="error",
                _node_ip_address=address,
            )
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster: Any, name: str, address: str = LOOPBACK) -> Any:
    """Start another node."""
    return cluster.add_node(**_node(name, address))


def _node(name: str, address: str) -> dict[str, Any]:
    return {
        "num_cpus": 1,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "node_ip_address": address,
        "node_name": name,
        "include_dashboard": False,
    }
