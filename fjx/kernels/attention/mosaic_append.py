"""Writing keys and values into their pages on Hopper GPUs, in Pallas for Mosaic GPU.

A row's keys and values lie side by side and go to pieces of as many bytes as a head has: the memory
engine takes each to its place, and nothing is rearranged.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int32

from fjx.kernels import mosaic
from fjx.kernels.mosaic import plgpu
from fjx.kernels.ragged import RaggedRows

_NOWHERE = -1


def append(
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
    kv_pages: Array,
    layer: int | Int32[Array, ""],
    rows: RaggedRows,
    blocks: int = 132,
) -> Array:
    """Write the rows' keys and values into their pages: see
    `fjx.kernels.attention.api.append_and_attend`. ``blocks``: of the grid, at most."""
    layers, pages, two, K, page_size, D = kv_pages.shape
    T = len(k)
    page = rows.page_table[jnp.maximum(rows.request_of, 0), rows.positions // page_size]
    to = (jnp.asarray(layer, jnp.int32) * pages + page) * two * K
    to = jnp.where(rows.request_of >= 0, to, _NOWHERE).astype(jnp.int32)
    where = jnp.stack([to, rows.positions % page_size])
    # A value that nobody sees is multiplied by 0, which must give 0.
    largest = float(jnp.finfo(kv_pages.dtype).max)  # type: ignore[no-untyped-call]
    v = jnp.nan_to_num(v, nan=0.0, posinf=largest, neginf=-largest).clip(-largest, largest)
    new = jnp.stack([k, v], axis=1).astype(kv_pages.dtype).reshape(T, two * K, D)
    write = _kernel(T, two * K, D, kv_pages.dtype, min(blocks, T))
    change = pl.run_state(lambda memory: write(where, new, memory))
    changed: Array = change(kv_pages.reshape(layers * pages * two * K, page_size, D))
    return changed.reshape(kv_pages.shape)


def _kernel(T: int, pieces: int, D: int, dtype: Any, blocks: int) -> Any:
    """Takes where rows go, their keys and values, and the memory, which it changes."""

    def body(where, new, memory, new_at, arrived):  # type: ignore[no-untyped-def]
        here = lax.axis_index("block")

        def write(i, _):  # type: ignore[no-untyped-def]
            row = here + i * blocks
            to, slot = where[0, row], where[1, row]

            @pl.when(to != _NOWHERE)
            def _write() -> None:
                plgpu.copy_gmem_to_smem(new.at[row], new_at, arrived)
                plgpu.barrier_wait(arrived)
                for piece in range(pieces):
                    plgpu.copy_smem_to_gmem(new_at.at[piece], memory.at[to + piece, slot])
                plgpu.wait_smem_to_gmem(0)

        lax.fori_loop(0, (T - here + blocks - 1) // blocks, write, None)

    return mosaic.kernel(
        body,
        results=(),
        scratch=[plgpu.SMEM((pieces, D), dtype), plgpu.Barrier()],
        grid=(blocks,),
        grid_names=("block",),
        warpgroups=1,
        name="fjx_append",
    )
