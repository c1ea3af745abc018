"""From a model's sizes and a Ray address to executors on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import ray

from fjx.cluster.cluster import Cluster, Timeouts
from fjx.cluster.cluster_executor import ClusterExecutor
from fjx.cluster.cluster_plan_runtime import ClusterPlanRuntime
from fjx.cluster.messages import WorkerConfig
from fjx.cluster.nodes import connect
from fjx.models.granules import Model
from fjx.pipeline.programs import Programs
from fjx.regranularization.plan_target import Planner, PlanTarget
from fjx.sharding.topology.topology import Topology


class StartedCluster(NamedTuple):
    """A cluster that is ready to serve."""

    plan_runtime: ClusterPlanRuntime
    planner: Planner
    executors: list[ClusterExecutor]
    """One for each replica."""


def start_cluster(
    setup: WorkerConfig,
    target: PlanTarget,
    planner_for: Callable[[Topology], Planner],
    address: str = "auto",
    timeouts: Timeouts | None = None,
    idle_seconds: float | None = None,
    cpu_devices: int = 1,
    known: Topology | None = None,
) -> StartedCluster:
    """Start the workers of a plan and load its stages.

    Args:
        setup: what runs.
        target: the plan that is wanted.
        planner_for: gives a planner for the cluster's devices.
        address: of Ray's head, or ``auto``.
        timeouts: limits of waits.
        idle_seconds: without a request after which all workers end; None: they stay.
        cpu_devices: of a node without GPUs.
        known: what a cluster file says of the nodes.

    Raises:
        UserError: there is no such Ray cluster, or the plan does not suit it.
        StageLostError: a worker did not start or load.
    """
    timeouts = timeouts or Timeouts()
    connect(address)
    model = Model(setup.config, setup.granule_layers)
    programs = Programs(model, setup.limits, jnp.dtype(setup.dtype))
    here = ray.util.get_node_ip_address()
    cluster = Cluster(setup, programs, here, timeouts, cpu_devices, known)
    try:
        planner = planner_for(cluster.topology())
        executors = cluster.start(planner.plan(target))
    except BaseException:
        cluster.close()
        raise
    return StartedCluster(ClusterPlanRuntime(cluster, idle_seconds), planner, executors)
