"""Bytes that parameters and KV pages take, from shapes and plans alone."""

from __future__ import annotations

import math
from typing import Any

import jax

from fjx.kernels.matmul import is_packed
from fjx.pipeline.programs import Programs
from fjx.sharding.plan.plan import Plan


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
