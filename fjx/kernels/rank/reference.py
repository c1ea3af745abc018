"""Ranks of drafted tokens in plain jnp, by way of all logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from fjx.kernels.matmul import matmul
from fjx.kernels.rank.rows import DraftedRows
from fjx.kernels.token_rule import gumbel


def drafted_ranks(
    hidden: Float[Array, "T D"],
    unembed: Array,
    token_ids: Int32[Array, " V"],
    rows: DraftedRows,
    *,
    soft_cap: float | None,
) -> Int32[Array, " T"]:
    """See `fjx.kernels.rank.api.drafted_ranks`."""
    logits = matmul(hidden, unembed, len(token_ids))
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)

    def with_noise() -> Array:
        hot = (rows.temperature > 0)[:, None]
        scaled = logits / jnp.where(hot, rows.temperature[:, None], 1.0)
        return jnp.where(hot, scaled + gumbel(rows.seed, rows.position, token_ids), logits)

    values = jax.lax.cond(jnp.any(rows.temperature > 0), with_noise, lambda: logits)
    mine = jnp.take_along_axis(values, jnp.maximum(rows.drafted, 0)[:, None], axis=1)
    ranks: Array = jnp.sum(values > mine, axis=1, dtype=jnp.int32)
    return ranks
