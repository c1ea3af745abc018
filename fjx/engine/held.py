"""What an engine holds in memory, by kind."""

from __future__ import annotations

from fjx.engine.replicas import Replicas
from fjx.outputs import HeldMemory
from fjx.pipeline.held_bytes import kv_bytes, parameter_bytes
from fjx.scheduling.page_pool import PagePool
from fjx.speculation.runtime.drafter import Drafter


def held_memory(replicas: Replicas, drafter: Drafter | None) -> HeldMemory:
    """What the replicas and their drafter hold, from shapes and plans alone: arrays may be in other
    processes."""
    executors = replicas.executors
    programs, limits = executors[0].programs, executors[0].limits
    of_pages = kv_bytes(programs)
    used = sum(_used_share(replica.scheduler.pool) * of_pages for replica in replicas)
    draft_parameters, draft_kv = (0, 0) if drafter is None else drafter.held_bytes()
    return HeldMemory(
        parameters=sum(parameter_bytes(each.programs, each.plan) for each in executors),
        kv_tokens=(limits.num_pages - 1) * limits.page_size,
        kv_bytes=of_pages * len(executors),
        kv_used_bytes=round(used),
        draft_parameters=draft_parameters,
        draft_kv_bytes=draft_kv,
        programs=executors[0].compiler.num_programs,
    )


def _used_share(pool: PagePool) -> float:
    return pool.num_used / pool.num_pages
