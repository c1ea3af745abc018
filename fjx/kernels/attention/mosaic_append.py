"""Rotating queries and keys, and writing keys and values into their pages, on Hopper GPUs.

In Pallas for Mosaic GPU. A warpgroup takes a row at a time: it reads queries, keys, values and
angles from memory once, rotates in float32 registers, rounds, and writes keys and values to their
pages and queries as `fjx.kernels.attention.mosaic` reads them, straight from registers. Every
element has a place of its own, so that a row's bits depend on nothing but the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int32

from fjx.kernels import mosaic
from fjx.kernels.attention.rotation import Rotation
from fjx.kernels.mosaic import plgpu
from fjx.kernels.ragged import RaggedRows

_WARPGROUPS = 4
"""Of a block: with fewer, too little is on its way from memory at once."""
_VECTOR = 4
"""Elements that a thread reads at once: 16 bytes of float32."""
_WARPS, _LANES = 4, 32
"""Warps of a warpgroup, threads of a warp."""


def append(
    q: Float[Array, "T H D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
    kv_pages: Array,
    layer: int | Int32[Array, ""],
    rows: RaggedRows,
    rotation: Rotation | None,
    *,
    group: int,
    slack: int,
    blocks: int = 132,
) -> tuple[Array, Array]:
    """Write the rows' keys and values into their pages: see
    `fjx.kernels.attention.api.append_and_attend`.

    Args:
        group: places for the query heads of a KV head, H / K or more.
        slack: number of tokens for which there is room behind the last row.
        blocks: of the grid, at most.

    Returns:
        The queries, (K, (T + slack) * group, D), rotated, in the pages' type; and the pages. What
        padded rows, places without a head, and slack hold is not defined.
    """
    layers, pages, two, K, page_size, D = kv_pages.shape
    T, H, _ = q.shape
    shape = K, T + slack, group, D
    write = _Append(
        rows=T,
        kv_heads=K,
        heads=H // K,
        half=D // 2,
        page_size=page_size,
        pages=pages,
        table_width=rows.page_table.shape[1],
        dtype=kv_pages.dtype,
        blocks=min(blocks, T),
    ).kernel(shape)
    at_layer = jnp.asarray(layer, jnp.int32)[None]
    row_of = at_layer, rows.request_of, rows.positions, rows.page_table.reshape(-1)
    of_heads = q.reshape(T, K, H // K, D), k.reshape(T, K, 1, D), v.reshape(T, K, 1, D)

    def change(state: tuple[Any, Any]) -> None:
        memory, queries = state
        (queries[...],) = write(*row_of, *of_heads, *(rotation or ()), memory)

    memory = kv_pages.reshape(layers * pages, two, K, page_size, D)
    # Nothing reads these zeros, and so nothing writes them.
    memory, queries = pl.run_state(change)((memory, jnp.zeros(shape, kv_pages.dtype)))
    return queries.reshape(K, -1, D), memory.reshape(kv_pages.shape)


@dataclass(frozen=True)
class _Append:
    """The kernel of some sizes."""

    rows: int
    kv_heads: int
    heads: int
    """Query heads of a KV head."""
    half: int
    """Of a head: the elements that are firsts, or seconds, of a rotated pair."""
    page_size: int
    pages: int
    """Of a layer."""
    table_width: int
    dtype: Any
    blocks: int

    def kernel(self, queries: tuple[int, ...]) -> Any:
        """From the layer, each row's request and position, the page tables, flat; queries
        [T, K, heads, D], keys and values [T, K, 1, D]; cosine and sine [T, D / 2], or neither; and
        the memory [layers * pages, 2, K, page_size, D], which it changes: the queries, of this
        shape."""
        return mosaic.kernel(
            self._body,
            results=(mosaic.struct(queries, self.dtype),),
            scratch=[],
            grid=(self.blocks,),
            grid_names=("block",),
            warpgroups=_WARPGROUPS,
            name="fjx_append",
        )

    def _body(
        self, layer: Any, request_of: Any, positions: Any, table: Any, q: Any, k: Any, v: Any,
        *refs: Any,
    ) -> None:  # fmt: skip
        *rotation, memory, queries = refs
        # Few rows go to as many blocks as there are.
        here = lax.axis_index("block") + self.blocks * lax.axis_index("wg")
        workers = self.blocks * _WARPGROUPS

        def take(i, _):  # type: ignore[no-untyped-def]
            row = here + i * workers
            request = request_of[row]

            @pl.when(request >= 0)
            def _take() -> None:
                position = positions[row]
                page = table[request * self.table_width + position // self.page_size]
                of_page = memory.at[layer[0] * self.pages + page]
                slot = pl.ds(position % self.page_size, 1)
                by_column = self._layout((1, 1))
                angles = tuple(mosaic.load(each.at[row], by_column) for each in rotation)
                # A write waits for all threads: first all is read.
                new = (
                    (self._rotated(q.at[row], angles), queries.at[:, row, pl.ds(0, self.heads)]),
                    (self._rotated(k.at[row], angles), of_page.at[0, :, slot]),
                    (
                        tuple(map(self._finite, self._rotated(v.at[row], ()))),
                        of_page.at[1, :, slot],
                    ),
                )
                for halves, place in new:
                    for values, own in zip(halves, self._halves(place), strict=True):
                        mosaic.store(own, values.astype(self.dtype))

        lax.fori_loop(0, (self.rows - here + workers - 1) // workers, take, None)

    def _rotated(self, x: Any, angles: tuple[Array, ...]) -> tuple[Array, Array]:
        """Both halves of some heads [K, n, D], by a row's angles; without angles, as they are."""
        layout = self._layout(x.shape)
        first, second = (mosaic.load(half, layout) for half in self._halves(x))
        if not angles:
            return first, second
        if first.ndim > 1:
            angles = tuple(
                plgpu.layout_cast(lax.broadcast_in_dim(each, first.shape, [2]), layout)
                for each in angles
            )
        cos, sin = angles
        return first * cos - second * sin, second * cos + first * sin

    def _finite(self, values: Array) -> Array:
        """What of values the type can hold, and 0 where they are no numbers: a value that nobody
        sees is multiplied by 0, which must give 0."""
        largest = float(jnp.finfo(self.dtype).max)  # type: ignore[no-untyped-call]
        most = jnp.full_like(values, largest)
        within = jnp.minimum(jnp.maximum(values, -most), most)
        return jnp.where(values == values, within, jnp.zeros_like(values))

    def _halves(self, x: Any) -> tuple[Any, Any]:
        first, second = (pl.ds(number * self.half, self.half) for number in range(2))
        if x.shape[:2] == (1, 1):
            # Before JAX 0.12, part of one line can only be read as a line.
            return x.at[0, 0, first], x.at[0, 0, second]
        return x.at[:, :, first], x.at[:, :, second]

    def _layout(self, shape: tuple[int, ...]) -> Any:
        """Who has what of [K, n, half], or of a line: threads side by side have elements side by
        side, and others have other heads, if these can be shared out evenly, or else the same."""
        kv_heads, n = shape[:2]
        across = self.half // _VECTOR
        warps = _shared(kv_heads, n, _WARPS)
        lanes = _shared(kv_heads // warps[0], n // warps[1], _LANES // across)
        layout = mosaic.tiled(
            (warps[0] * lanes[0], warps[1] * lanes[1], self.half),
            (*lanes, self.half),
            (_VECTOR,),
            warps=(-7, -6),
            lanes=(-4, -3, -2),
        )
        return layout.reduce((0, 1)) if shape[:2] == (1, 1) else layout


def _shared(kv_heads: int, heads: int, among: int) -> tuple[int, int]:
    """How many take different KV heads, and different heads of each."""
    if kv_heads % among == 0:
        return among, 1
    return (1, among) if heads % among == 0 else (1, 1)
