"""Ragged paged attention in plain jnp: the oracle of every other implementation.

Its cost follows the longest context in the batch, not the longest possible one.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from fjx.kernels.attention.rotation import Rotation, rotate
from fjx.kernels.ragged import RaggedRows

_MASKED = -1e30
_PAGES_A_BLOCK = 8


def append_and_attend(
    q: Float[Array, "T H D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
    kv_pages: Array,
    layer: int | Int32[Array, ""],
    rows: RaggedRows,
    *,
    rotation: Rotation | None,
    scale: float,
    window: Int32[Array, ""] | None,
    soft_cap: float | None,
) -> tuple[Float[Array, "T H D"], Array]:
    """See `fjx.kernels.attention.api.append_and_attend`."""
    q, k = rotate(q, rotation), rotate(k, rotation)
    dtype = jnp.dtype(jnp.bfloat16) if kv_pages.dtype == jnp.uint16 else kv_pages.dtype
    kv_pages = append(k, v, kv_pages, layer, rows, dtype)
    return _attend(q, kv_pages[layer], rows, dtype, scale, window, soft_cap), kv_pages


def append(
    k: Array, v: Array, kv_pages: Array, layer: int | Array, rows: RaggedRows, dtype: jnp.dtype
) -> Array:
    """Write the rows' keys and values, as ``dtype``, into their pages."""
    page_size, pages = kv_pages.shape[4], kv_pages.shape[1]
    page_of_row = rows.page_table[rows.request_of, rows.positions // page_size]
    page_of_row = jnp.where(rows.request_of >= 0, page_of_row, pages)  # out of bounds: dropped
    new = jnp.stack([k, v], axis=1).astype(dtype)
    if kv_pages.dtype != dtype:
        new = lax.bitcast_convert_type(new, kv_pages.dtype)
    slot = rows.positions % page_size
    return kv_pages.at[layer, page_of_row, :, :, slot].set(new, mode="drop")


def _attend(
    q: Array,
    pages: Array,
    rows: RaggedRows,
    dtype: jnp.dtype,
    scale: float,
    window: Array | None,
    soft_cap: float | None,
) -> Array:
    T, H, D = q.shape
    K, page_size = pages.shape[2], pages.shape[3]
    table = rows.page_table[rows.request_of]
    table = jnp.pad(table, ((0, 0), (0, -table.shape[1] % _PAGES_A_BLOCK)))
    block = _PAGES_A_BLOCK * page_size
    q = (q * scale).reshape(T, K, H // K, D)
    oldest = jnp.zeros_like(rows.positions)
    if window is not None:
        oldest = jnp.where(window > 0, rows.positions - window + 1, 0)

    def attend_block(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, acc = carry
        kv = pages[lax.dynamic_slice_in_dim(table, i * _PAGES_A_BLOCK, _PAGES_A_BLOCK, 1)]
        if kv.dtype != dtype:
            kv = lax.bitcast_convert_type(kv, dtype)
        kv = jnp.moveaxis(kv.astype(jnp.float32), 1, 3).reshape(T, 2, K, block, D)
        logits = jnp.einsum("tkgd,tkcd->tkgc", q, kv[:, 0])
        if soft_cap is not None:
            logits = soft_cap * jnp.tanh(logits / soft_cap)
        at = i * block + jnp.arange(block)
        seen = (at <= rows.positions[:, None]) & (at >= oldest[:, None])
        logits = jnp.where(seen[:, None, None], logits, _MASKED)
        new_top = jnp.maximum(top, logits.max(-1))
        weights = jnp.where(seen[:, None, None], jnp.exp(logits - new_top[..., None]), 0.0)
        # Slots that were never written may hold anything, and 0 * NaN is NaN.
        values = jnp.where(seen[:, None, :, None], kv[:, 1], 0.0)
        shrink = jnp.exp(top - new_top)
        acc = acc * shrink[..., None] + jnp.einsum("tkgc,tkcd->tkgd", weights, values)
        return new_top, total * shrink + weights.sum(-1), acc

    start = (
        jnp.full((T, K, H // K), _MASKED, jnp.float32),
        jnp.zeros((T, K, H // K), jnp.float32),
        jnp.zeros((T, K, H // K, D), jnp.float32),
    )
    blocks = (rows.context_len.max() + block - 1) // block
    _, total, acc = lax.fori_loop(0, blocks, attend_block, start)
    out = acc / jnp.maximum(total, 1e-30)[..., None]
    return jnp.where(rows.request_of[:, None, None] >= 0, out.reshape(T, H, D), 0.0)
