"""What an engine holds in memory, by kind."""

from __future__ import annotations

import math
from typing import Any

import jax

from fjx.cache.page_pool import PagePool
from fjx.engine.drafter import Drafter
from fjx.engine.replicas import Replicas
from fjx.kernels.matmul import is_packed
from fjx.outputs import HeldMemory
from fjx.pipeline.programs import Programs
from fjx.sharding.plan import Plan


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


def parameter_bytes(programs: Programs, plan: Plan) -> int:
    """Bytes of a model's parameters where they lie by a plan."""
    places = [plan.stages[0], *_stage_of_granule(plan), plan.stages[-1]]
    sizes = {
        piece: nbytes(programs.params(piece, stage.mesh.tensor))
        for piece, stage in zip(programs.pieces, places, strict=True)
    }
    total = sum(sizes.values())
    first, last = places[0].mesh, places[-1].mesh
    if programs.model.config.tied_embeddings and first == last:
        table = programs.params("embed", first.tensor)["tokens"]
        total -= nbytes(table) if is_packed(table) else 0  # one array serves both ends
    return total


def kv_bytes(programs: Programs) -> int:
    """Bytes of all KV pages of a replica."""
    return sum(nbytes(programs.kv_struct(len(layers))) for layers in programs.model.granules)


def nbytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, of a pytree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _stage_of_granule(plan: Plan) -> list[Any]:
    return [stage for stage in plan.stages for _ in stage.granules]


def _used_share(pool: PagePool) -> float:
    return pool.num_used / pool.num_pages
