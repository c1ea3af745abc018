"""Drafters for the tests of speculation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fjx.engine.draft_head import HeadDrafter
from fjx.engine.engine import Engine
from fjx.models.draft_head import DraftHead
from fjx.pipeline.draft_programs import HeadPrograms
from tests.unit.engine.tiny import VOCABULARY

LONGEST = 6


def head_drafter(engine: Engine, dtype: str = "float32") -> HeadDrafter:
    """A draft head of random weights that knows every second token."""
    executor = engine.executor
    model, limits = executor.model, executor.limits
    head = DraftHead(model.config, np.arange(0, VOCABULARY, 2, dtype=np.int32))
    device = executor.pieces.shapes[-1].placement.devices[0]
    programs = HeadPrograms(head, model, limits, jnp.dtype(dtype), device, stacked=False)
    executor.compiler.register(programs.specs())
    draw = np.random.default_rng(0)
    tensors = {
        name: draw.standard_normal(spec.shape, np.float32) * 0.2
        for name, spec in head.tensors().items()
    }
    embed = jax.device_put(executor.pieces.embed.params, device)
    return HeadDrafter(programs, programs.place(tensors), embed, executor.compiler, LONGEST)
