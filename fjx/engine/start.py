"""From a configuration to a running engine: find, load, compile."""

from __future__ import annotations

import time
from dataclasses import replace

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.loading import find_model, load_executors, make_planner, make_programs
from fjx.engine.names import check_names
from fjx.engine.start_cluster import start_on_cluster
from fjx.engine.start_speculator import (
    check_draft_model,
    find_head,
    find_lens,
    start_speculator,
)
from fjx.granularity.autopilot import start_autopilot
from fjx.pipeline.background import give_back_memory, keep_heap, release_heap, share_heaps
from fjx.pipeline.bound_mesh import live_devices
from fjx.pipeline.placed_model import move_programs, step_programs
from fjx.regranularization.plan_target import make_cpu_devices


def start_engine(config: EngineConfig, progress: bool = True) -> Engine:
    """Load the model and compile its programs.

    Raises:
        UserError: the model cannot be had, or the configuration or the profile does not fit it.
        StageLostError: a worker of the cluster was lost at the start.
    """
    share_heaps()
    if config.cluster is not None:
        return start_on_cluster(config, config.cluster, progress)
    check_names(config)
    make_cpu_devices(config.mesh, *config.plan_ladder)
    source, model_config, tokenizer = find_model(config)
    head = find_head(config, model_config)
    lens = find_lens(config, model_config, head)
    programs = make_programs(
        config, model_config, hidden=head is not None, lens=None if lens is None else lens.lens
    )
    planner = make_planner(config, programs)
    deployment, devices = planner.plan(config.mesh), live_devices()
    for mesh in config.plan_ladder:
        planner.plan(mesh)  # or a mesh that does not suit would be refused after all of the loading
    check_draft_model(config, tokenizer)
    needed = () if head is None else head.programs(programs, deployment, devices).specs()
    looking = [each.take for each in (head, lens) if each is not None]
    executors = load_executors(config, source, programs, deployment, progress, needed, looking)
    config = replace(config, max_model_len=programs.limits.max_model_len)
    autopilot = start_autopilot(config, planner, time.monotonic())
    if autopilot is not None:
        # Later changes will not have to wait for the compiler.
        for rung in autopilot.ladder.rungs:
            of_rung = (
                *step_programs(programs, rung.deployment, devices),
                *move_programs(programs, rung.deployment, devices),
            )
            executors[0].compiler.compile_background(s for s in of_rung if not s.background)
    speculator = start_speculator(config, tokenizer, executors[0], head, lens, progress)
    release_heap()  # of engines that were here before
    keep_heap()
    give_back_memory()
    return Engine(config, executors, tokenizer, planner, autopilot, speculator)
