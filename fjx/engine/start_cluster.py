"""From a configuration to an engine whose stages run on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.loading import find_model, make_planner, make_programs
from fjx.engine.names import HEAD_SUFFIX, check_names
from fjx.engine.start_speculator import remote_speculator, start_draft_model
from fjx.errors import UserError
from fjx.granularity.autopilot import start_autopilot
from fjx.models.loading.source import cache_root
from fjx.models.tokenizer import Tokenizer
from fjx.pipeline.limits import Limits
from fjx.regranularization.plan_target import Planner
from fjx.sharding.topology.cluster_file import read_cluster
from fjx.sharding.topology.topology import Topology
from fjx.speculation.runtime.drafter import Drafter, PromptLookup
from fjx.speculation.runtime.speculator import Speculator

_LOOKUP = ("auto", "ngram")
"""Drafters that take no model."""


def start_on_cluster(config: EngineConfig, address: str, progress: bool = True) -> Engine:
    """Start the workers of the plan that the configuration asks for, and load the model there.

    Raises:
        UserError: Ray is not installed or has no cluster there, the model cannot be had, or the
            configuration asks for what a cluster cannot do.
        StageLostError: a worker did not start, or could not load its stages.
    """
    try:
        from fjx.cluster.cluster import Timeouts
        from fjx.cluster.messages import Weights, WorkerConfig
        from fjx.cluster.nodes import connect, live_nodes
        from fjx.cluster.start_workers import start_cluster
    except ImportError as error:
        raise UserError(
            f"--cluster needs Ray, which is not installed ({error}): pip install ray"
        ) from error
    _check(config)
    check_names(config)
    known = None if config.cluster_file is None else read_cluster(Path(config.cluster_file))
    # This process schedules; a device that it held would be missing to a worker of its node.
    update: Callable[[str, Any], None] = jax.config.update
    update("jax_platforms", "cpu")
    connect(address)
    asked = config  # the draft model runs here, not on the nodes' GPUs
    if config.dtype == "auto" and any(node.gpus for node in live_nodes()):
        config = replace(config, dtype="bfloat16")
    source, model_config, tokenizer = find_model(config)
    programs = make_programs(config, model_config)

    def planner_for(topology: Topology) -> Planner:
        planner = make_planner(config, programs)
        return replace(planner, topology=topology, fragments=known is not None)

    setup = WorkerConfig(
        config=model_config,
        granule_layers=config.granule_layers,
        limits=programs.limits,
        dtype=programs.dtype.name,
        weights=Weights(None if config.load_random_weights else source),
        cache_dir=cache_root(config.cache_dir) / "programs",
        warmup=config.warmup,
    )
    drafter = _drafter(asked, programs.limits, tokenizer, progress)
    timeouts = Timeouts(heartbeat=config.cluster_patience)
    started = start_cluster(
        setup,
        config.mesh,
        planner_for,
        address,
        timeouts,
        config.idle_timeout,
        known=known,
    )
    config = replace(config, max_model_len=programs.limits.max_model_len)
    speculator: Speculator | None = None
    if drafter is not None:
        stages = len(started.executors[0].plan.stages)
        speculator = remote_speculator(config, programs.limits, drafter, stages)
    autopilot = start_autopilot(config, started.planner, time.monotonic())
    return Engine(
        config,
        started.executors,
        tokenizer,
        started.planner,
        autopilot,
        speculator,
        started.plan_runtime,
    )


def _drafter(
    config: EngineConfig, limits: Limits, tokenizer: Tokenizer, progress: bool
) -> Drafter | None:
    """What drafts, in this process; None: nothing does.

    Raises:
        UserError: the draft model cannot be had, or has another vocabulary.
    """
    if not limits.max_draft_rows:
        return None
    if config.drafter in _LOOKUP:
        return PromptLookup(config.max_draft_length)
    return start_draft_model(config, limits, tokenizer, progress)


def _check(config: EngineConfig) -> None:
    """Refuse what only works in one process.

    Raises:
        UserError: the configuration asks for it.
    """
    if config.drafter == "head" or config.drafter.endswith(HEAD_SUFFIX):
        raise UserError(
            f"on a cluster no draft head drafts, got {config.drafter!r}: it reads the target's "
            "residual stream, which is in another process; use ngram, or a draft model, which runs "
            "in the driver's"
        )
    if config.pruning != "off":
        raise UserError(
            f"on a cluster nothing is pruned, got {config.pruning!r}: the lens reads the residual "
            "stream between stages, which is in other processes; set pruning to off"
        )
    if config.draft_ahead == "always":
        raise UserError(
            "on a cluster nothing is drafted beside a step, got draft_ahead 'always': the target's "
            "devices are another process's; set draft_ahead to off or auto"
        )
