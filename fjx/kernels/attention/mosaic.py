"""Ragged paged attention on Hopper GPUs, in Pallas for Mosaic GPU.

The queries of a request are cut into tiles of 64 rows: some of its tokens, each with the query
heads that share a KV head. A tile's context is cut into chunks of a fixed number of positions, and
a work item is one chunk of one tile and KV head. As many blocks as the caller allows take the items
in turn. In each, one warpgroup reads page ids and lets the memory engine bring pages into a ring of
shared memory; the others multiply: in steps of many rows two of them, for two tiles of one request.

Chunks begin at multiples of their size, whatever is in the batch, and a row takes no part in what
it does not see. So a row's sums are always taken in the same order.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from fjx.kernels import tuning
from fjx.kernels.attention.mosaic_append import append
from fjx.kernels.attention.mosaic_kernels import AttentionKernels, Items, Tiles
from fjx.kernels.attention.mosaic_tile import BLOCK, TILE
from fjx.kernels.attention.rotation import Rotation
from fjx.kernels.ragged import RaggedRows

_CHUNK = 2048
"""Positions of a work item, at most."""
_BLOCKS = 132
"""Of the grid, where nothing else was measured: a Hopper's multiprocessors."""
_FEW_ROWS = 256
"""Steps of more rows have tiles enough for a GPU: a tile's chunks are one item, and where registers
allow two tiles are."""
_LARGEST_OF_PAIRS = 128
"""Size of a head up to which they do."""


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
    blocks: int | None = None,
    chunk: int = _CHUNK,
) -> tuple[Float[Array, "T H D"], Array]:
    """See `fjx.kernels.attention.api.append_and_attend`.

    Args:
        blocks: of the grid; fewer than the GPU has multiprocessors leave the others to whatever
            runs beside it. None: as measured, see `fjx.kernels.tuning`.
        chunk: positions of a work item, a multiple of 64. It sets the order of a row's sums, and so
            is the same for all batches.
    """
    H, group = q.shape[1], _group(q.shape[1], k.shape[1])
    queries, kv_pages = append(
        q, k, v, kv_pages, layer, rows, rotation,
        group=group, slack=TILE // group, blocks=blocks or _BLOCKS,
    )  # fmt: skip
    out = _attend(queries, H, kv_pages, layer, rows, scale, window, soft_cap, blocks, None, chunk)
    return jnp.where(rows.request_of[:, None, None] >= 0, out, 0.0), kv_pages


def fits(kv_pages_shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether the kernel takes pages of this shape and type."""
    *_, page_size, head_dim = kv_pages_shape
    whole = BLOCK % page_size == 0 or page_size % BLOCK == 0
    return (
        jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        and head_dim in (64, 128, 256)
        and page_size % 8 == 0
        and whole
    )


def tuned_shape(T: int, H: int, K: int, D: int, page_size: int) -> str:
    """What the kernel's speed depends on, in the table of `fjx.kernels.tuning`."""
    rows = 1 << (T - 1).bit_length()
    return f"up to {rows} rows, {H} heads of {D} on {K}, pages of {page_size}"


def attend(
    q: Float[Array, "T H D"],
    kv_pages: Array,
    layer: int | Int32[Array, ""],
    rows: RaggedRows,
    *,
    scale: float,
    window: Int32[Array, ""] | None = None,
    soft_cap: float | None = None,
    blocks: int | None = None,
    stages: int | None = None,
    chunk: int = _CHUNK,
) -> Float[Array, "T H D"]:
    """Attend to keys and values that are in their pages, with queries after RoPE; see
    `append_and_attend`. What padded rows get is not defined. ``stages``: places of the ring in
    shared memory; None: as measured."""
    T, H, D = q.shape
    K = kv_pages.shape[3]
    group = _group(H, K)
    q = q.astype(kv_pages.dtype).reshape(T, K, H // K, D)
    q = jnp.pad(q, ((0, TILE // group), (0, 0), (0, group - H // K), (0, 0)))
    queries = jnp.moveaxis(q, 1, 0).reshape(K, -1, D)
    return _attend(
        queries, H, kv_pages, layer, rows, scale, window, soft_cap, blocks, stages, chunk
    )


def _group(heads: int, kv_heads: int) -> int:
    """The query heads of a KV head, padded to a power of two."""
    return 1 << (heads // kv_heads - 1).bit_length()


def _attend(
    queries: Array,
    H: int,
    kv_pages: Array,
    layer: int | Array,
    rows: RaggedRows,
    scale: float,
    window: Array | None,
    soft_cap: float | None,
    blocks: int | None,
    stages: int | None,
    chunk: int,
) -> Array:
    """With queries [K, (T + tokens of a tile) * group, D] of H heads."""
    T = len(rows.positions)
    layers, pages, two, K, page_size, D = kv_pages.shape
    tuned = tuning.parameters("attention", tuned_shape(T, H, K, D, page_size))
    group = _group(H, K)
    few = T <= _FEW_ROWS
    pairs = not few and D <= _LARGEST_OF_PAIRS
    tokens = TILE // group * (1 + pairs)
    window = jnp.int32(0) if window is None else window.astype(jnp.int32)
    table_width = rows.page_table.shape[1]
    kernels = AttentionKernels(
        kv_heads=K,
        group=group,
        rows=queries.shape[1],
        head_dim=D,
        dtype=kv_pages.dtype,
        page_size=page_size,
        pages=pages,
        table_width=table_width,
        chunk=chunk,
        chunks=-(-table_width * page_size // chunk) if few else 1,
        scale=scale,
        soft_cap=soft_cap,
        blocks=blocks or tuned.get("blocks", _BLOCKS),
        tiles=1 + pairs,
        stages=stages or tuned.get("stages"),
    )
    flat = kv_pages.reshape(layers * pages * two * K, page_size, D)
    tiles, num_tiles, of_tile = _tiles(rows, tokens, window)
    if kernels.chunks == 1:
        items, num_items = of_tile, num_tiles
    else:
        items, num_items, tiles = _split(of_tile, tiles, num_tiles, chunk, kernels.chunks)
    numbers = jnp.stack([num_items, jnp.asarray(layer, jnp.int32), window])
    attended = kernels.attend(len(items.request))(
        numbers, jnp.stack(items), rows.page_table.reshape(-1), queries, flat
    )
    if kernels.chunks > 1:
        attended = kernels.combine()(num_tiles[None], jnp.stack(tiles), *attended)
    (out,) = attended
    out = out.reshape(K, -1, group, D)[:, :T, : H // K]
    return jnp.moveaxis(out, 0, 1).reshape(T, H, D)


def _tiles(rows: RaggedRows, tokens: int, window: Array) -> tuple[Tiles, Array, Items]:
    """Tiles of ``tokens`` tokens, their number, and one item for each: its whole context."""
    T, R = len(rows.positions), len(rows.context_len)
    count = jnp.diff(rows.query_start)
    ends = jnp.cumsum(-(-count // tokens))
    number = jnp.arange(R + T // tokens, dtype=jnp.int32)
    request = _in_which(ends, number)
    used = request < R
    request = jnp.minimum(request, R - 1)
    before = jnp.where(request > 0, ends[request - 1], 0)
    offset = (number - before) * tokens
    position = rows.context_len[request] - count[request] + offset
    of_tile = jnp.where(used, jnp.clip(count[request] - offset, 0, tokens), 0)
    oldest = jnp.where(window > 0, jnp.maximum(position - window + 1, 0), 0)
    row = rows.query_start[request] + offset
    nothing = jnp.zeros_like(number)
    items = Items(
        request, row, of_tile, position, oldest // BLOCK * BLOCK, position + of_tile, nothing
    )
    return Tiles(row, of_tile, number, nothing, nothing + 1), used.sum(dtype=jnp.int32), items


def _split(
    of_tile: Items, tiles: Tiles, num_tiles: Array, chunk: int, chunks: int
) -> tuple[Items, Array, Tiles]:
    """An item for each chunk of each tile, tile by tile; how many; and which are each tile's."""
    first = of_tile.begin // chunk
    used = jnp.arange(len(first)) < num_tiles
    needed = jnp.where(used, (of_tile.end - 1) // chunk - first + 1, 0)
    ends = jnp.cumsum(needed)
    number = jnp.arange(len(first) * chunks, dtype=jnp.int32)
    tile = jnp.minimum(_in_which(ends, number), len(first) - 1)
    at = first[tile] + number - (ends - needed)[tile]
    items = Items(*(values[tile] for values in of_tile))._replace(
        begin=jnp.maximum(of_tile.begin[tile], at * chunk),
        end=jnp.minimum(of_tile.end[tile], (at + 1) * chunk),
        chunk=at,
    )
    tiles = tiles._replace(first_item=ends - needed, first_chunk=first, chunks=needed)
    return items, ends[-1], tiles


def _in_which(ends: Array, number: Array) -> Array:
    """Which of the runs that end there has each number. Not by bisection, whose loop takes a GPU
    some twenty small kernels."""
    found: Array = jnp.searchsorted(ends, number, side="right", method="compare_all")
    return found.astype(jnp.int32)
