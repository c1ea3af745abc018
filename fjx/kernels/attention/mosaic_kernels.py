"""The kernels of `fjx.kernels.attention.mosaic`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from fjx.kernels import mosaic
from fjx.kernels.attention.mosaic_tile import (
    BLOCK,
    BY_ROW,
    LAYOUT,
    LEAST,
    TILE,
    Sums,
    Tile,
    blocks_between,
    divided,
    folded,
    nothing_yet,
    power_of_two,
    scaled,
)
from fjx.kernels.mosaic import plgpu

_WIDTH = 128
"""Columns of the values that are taken at once: more do not fit into a warpgroup's registers."""
_REGISTERS = {"multiply": 232, "bring": 40}
"""Of a thread, where two warpgroups multiply: what they need more, the third one needs less."""
_RING_BYTES = {1: 160 * 1024, 2: 128 * 1024}
"""Shared memory for keys and values on their way, at most, by tiles of an item."""


class Items(NamedTuple):
    """Chunks of tiles, or of pairs of tiles. Entries are [I] int32; those behind the last one in
    use are none."""

    request: Any
    first_row: Any
    tokens: Any
    """Of the tile, or of both."""
    position: Any
    """Of the first of them."""
    begin: Any
    """First position of the chunk, a multiple of `BLOCK`."""
    end: Any
    """Last position and 1."""
    chunk: Any


class Tiles(NamedTuple):
    """Tiles whose chunks are items. Entries are [J] int32."""

    first_row: Any
    tokens: Any
    first_item: Any
    first_chunk: Any
    chunks: Any


class _AttentionShared(NamedTuple):
    """What the warpgroups of a block share."""

    q: Any
    k: Any
    """A ring, as are the values."""
    v: Any
    out: Any
    sums: Any
    arrived: Any
    """Barriers, for each place of the ring: keys and values are there."""
    free: Any
    """They are needed no more."""
    weights: Any = None
    """Where an interpreter has them."""


@dataclass(frozen=True)
class AttentionKernels:
    """Attention of some sizes."""

    kv_heads: int
    group: int
    """Query heads of a KV head, padded to a power of two."""
    rows: int
    """Tokens times group, and at least a tile more."""
    head_dim: int
    dtype: Any
    page_size: int
    pages: int
    """Of a layer."""
    table_width: int
    chunk: int
    """Positions, a multiple of `BLOCK`."""
    chunks: int
    """Of the longest context; 1: the chunks of a tile are one item."""
    scale: float
    soft_cap: float | None
    blocks: int
    tiles: int = 1
    """Of an item, one for each warpgroup that multiplies; 2 read keys and values half as often."""
    stages: int | None = None
    """Places of the ring; None: as many as fit."""

    @property
    def _width(self) -> int:
        # A product must fit into registers beside the sums, and what two tiles give into shared
        # memory beside the ring.
        return _WIDTH if self.head_dim == _WIDTH and self.tiles == 1 else _WIDTH // 2

    @property
    def _parts(self) -> range:
        return range(self.head_dim // self._width)

    @property
    def _stages(self) -> int:
        """Places of the ring."""
        place = 2 * BLOCK * self.head_dim * 2
        return self.stages or max(2, min(5, _RING_BYTES[self.tiles] // place))

    def attend(self, items: int) -> Callable[..., Any]:
        """The kernel over at most ``items`` items.

        From the number of items in use, the layer and the window; the items, [7, I]; the page
        tables, flat; queries [K, rows, D]; and pages [layers * pages * 2 * K, page_size, D]: for
        one chunk the output [K, rows, D], float32. For more, of each the weighted values
        [chunks, K, rows, D], and of each item [I, K, 64], what was taken from its logits and the
        sums of its weights.
        """
        K, D, width, tiles = self.kv_heads, self.head_dim, self._width, self.tiles
        stages, parts = self._stages, len(self._parts)
        copies = max(BLOCK // self.page_size, 1)
        swizzled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        scratch = [
            plgpu.SMEM((tiles, TILE, D), self.dtype, transforms=swizzled),
            plgpu.SMEM((stages, BLOCK, D), self.dtype, transforms=swizzled),
            plgpu.SMEM((stages, parts, BLOCK, width), self.dtype, transforms=swizzled),
            plgpu.SMEM((tiles, TILE, width), jnp.float32),
            plgpu.SMEM((2, TILE), jnp.float32),
            plgpu.Barrier(num_arrivals=(1 + parts) * copies, num_barriers=stages),
            plgpu.Barrier(num_arrivals=tiles, num_barriers=stages),
        ]
        if mosaic.is_interpreted():
            scratch.append(plgpu.SMEM((tiles, TILE, BLOCK), self.dtype, transforms=swizzled))
        results: tuple[Any, ...] = (self._result(),)
        if self.chunks > 1:
            by_row = mosaic.struct((items, K, TILE), jnp.float32)
            results = (self._result(self.chunks), by_row, by_row)
        count = len(results)

        def body(numbers, work, table, q, kv, *refs):  # type: ignore[no-untyped-def]
            outs, shared = refs[:count], _AttentionShared(*refs[count:])
            bring = partial(self._bring_pages, numbers, work, table, kv, shared)
            multiply = partial(self._multiply, numbers, work, q, shared, outs)
            pl.when(lax.axis_index("wg") == tiles)(bring)
            pl.when(lax.axis_index("wg") < tiles)(multiply)

        return self._kernel("fjx_attend", body, results, scratch, warpgroups=tiles + 1)

    def combine(self) -> Callable[..., Any]:
        """From the number of tiles in use, the tiles [5, J], and what `attend` gave for more than
        one chunk: the output [K, rows, D], float32."""

        def body(numbers, tiles, values, top, sums, out, out_at):  # type: ignore[no-untyped-def]
            def combine(tile, head, done):  # type: ignore[no-untyped-def]
                first_row, tokens, first_item, first, chunks = (tiles[i, tile] for i in range(5))
                row = first_row * self.group
                for part in self._parts:
                    columns = pl.ds(part * self._width, self._width)

                    def add(i, whole, columns=columns):  # type: ignore[no-untyped-def]
                        of_chunk = values.at[first + i, head, pl.ds(row, TILE), columns]
                        item = first_item + i
                        return folded(
                            whole,
                            (
                                (mosaic.load(of_chunk, LAYOUT),),
                                mosaic.load(top.at[item, head], BY_ROW),
                                mosaic.load(sums.at[item, head], BY_ROW),
                            ),
                        )

                    (acc,), _, weight = lax.fori_loop(0, chunks, add, nothing_yet(self._width, 1))
                    self._store(divided(acc, weight), out_at, out.at[head], row, tokens, columns)
                return done

            self._in_turn(numbers[0], combine)

        scratch = [plgpu.SMEM((TILE, self._width), jnp.float32)]
        return self._kernel("fjx_combine", body, (self._result(),), scratch, warpgroups=1)

    def _result(self, *chunks: int) -> Any:
        return mosaic.struct((*chunks, self.kv_heads, self.rows, self.head_dim), jnp.float32)

    def _kernel(
        self, name: str, body: Any, results: Any, scratch: Any, warpgroups: int
    ) -> Callable[..., Any]:
        return mosaic.kernel(
            body,
            results=results,
            scratch=scratch,
            grid=(self.blocks,),
            grid_names=("block",),
            warpgroups=warpgroups,
            name=name,
        )

    def _in_turn(self, total: Any, do: Callable[[Any, Any, Any], Any]) -> None:
        """Do this block's share of ``total`` items for each KV head: ``do`` takes an item, the
        head, and what it returned for the item before, at first 0."""
        here = lax.axis_index("block")
        mine = (total * self.kv_heads - here + self.blocks - 1) // self.blocks

        def one(i, done):  # type: ignore[no-untyped-def]
            number = here + i * self.blocks
            return do(number // self.kv_heads, number % self.kv_heads, done)

        lax.fori_loop(0, mine, one, jnp.int32(0))

    def _bring_pages(
        self, numbers: Any, work: Any, table: Any, kv: Any, shared: _AttentionShared
    ) -> None:
        """What one warpgroup does: keys and values of all items go into the ring."""
        if self.tiles > 1:
            plgpu.set_max_registers(_REGISTERS["bring"], action="decrease")
        layer, K, page_size = numbers[1], self.kv_heads, self.page_size
        size = min(page_size, BLOCK)

        def bring_item(item, head, done):  # type: ignore[no-untyped-def]
            items = Items(*(work[i, item] for i in range(7)))
            begin = items.begin
            steps = blocks_between(begin, items.end)
            row = items.request * self.table_width

            def bring(step, _):  # type: ignore[no-untyped-def]
                slot = (done + step) % self._stages
                used = done + step >= self._stages
                pl.when(used)(lambda: plgpu.barrier_wait(shared.free.at[slot]))
                arrived = shared.arrived.at[slot]
                for offset in range(0, BLOCK, size):
                    position = begin + step * BLOCK + offset
                    # Behind the end of the table there is nothing to be seen.
                    entry = jnp.minimum(position // page_size, self.table_width - 1)
                    page = (layer * self.pages + table[row + entry]) * 2 * K + head
                    within = pl.ds(0, size)
                    if page_size > BLOCK:
                        within = pl.ds(pl.multiple_of(position % page_size, BLOCK), size)
                    to = pl.ds(offset, size)
                    plgpu.copy_gmem_to_smem(kv.at[page, within], shared.k.at[slot, to], arrived)
                    for part in self._parts:
                        columns = pl.ds(part * self._width, self._width)
                        values = kv.at[page + K, within, columns]
                        plgpu.copy_gmem_to_smem(values, shared.v.at[slot, part, to], arrived)

            lax.fori_loop(0, steps, bring, None)
            return done + steps

        self._in_turn(numbers[0], bring_item)

    def _multiply(
        self, numbers: Any, work: Any, q: Any, shared: _AttentionShared, outs: tuple[Any, ...]
    ) -> None:
        """What each of the other warpgroups does: queries times keys, weights, weights times
        values, for one tile of each item."""
        window, mine = numbers[2], lax.axis_index("wg")
        tokens = TILE // self.group
        if self.tiles > 1:
            plgpu.set_max_registers(_REGISTERS["multiply"], action="increase")
        q_at, out_at = shared.q.at[mine], shared.out.at[mine]
        columns = [pl.ds(part * self._width, self._width) for part in self._parts]

        def attend_item(item, head, done):  # type: ignore[no-untyped-def]
            items = Items(*(work[i, item] for i in range(7)))
            begin, end = items.begin, items.end
            count = jnp.clip(items.tokens - mine * tokens, 0, tokens)
            position = items.position + mine * tokens
            row = (items.first_row + mine * tokens) * self.group
            needed = jnp.where(count > 0, jnp.minimum(end, position + count), begin)

            @pl.when(count > 0)
            def _load() -> None:
                # The memory engine would need rows at multiples of 8.
                q_at[...] = mosaic.load(q.at[head, pl.ds(row, TILE)], LAYOUT)
                plgpu.commit_smem()

            tile = Tile(position, count, window, self.group)

            def attend_blocks(first: Any, last: Any, whole: Sums, done: Any) -> tuple[Sums, Any]:
                """From one position to another; in the middle all rows see all."""
                steps = blocks_between(first, last)
                full = tile.seen_by_all(first, steps)
                for i, (start, stop) in enumerate(zip((0, *full), (*full, steps), strict=True)):
                    attend = partial(self._attend, shared, tile, first, done, masks=i != 1)
                    whole = lax.fori_loop(start, stop, attend, whole)
                return whole, done + steps

            def attend_chunk(number, carry):  # type: ignore[no-untyped-def]
                whole, done = carry
                first = jnp.maximum(begin, number * self.chunk)
                last = jnp.minimum(needed, (number + 1) * self.chunk)
                added, done = attend_blocks(first, last, nothing, done)
                return folded(whole, added), done

            nothing = nothing_yet(self._width, len(self._parts))
            if self.chunks == 1:
                chunks = begin // self.chunk, (needed + self.chunk - 1) // self.chunk
                whole, now = lax.fori_loop(*chunks, attend_chunk, (nothing, done))
                acc, _, weight = whole
                values = tuple(divided(part, weight) for part in acc)
                to = outs[0].at[head]
            else:
                whole, now = attend_blocks(begin, needed, nothing, done)
                values, most, weight = whole
                shared.sums[0], shared.sums[1] = most, weight
                plgpu.commit_smem()
                for i, sums in enumerate(outs[1:]):
                    plgpu.copy_smem_to_gmem(shared.sums.at[i], sums.at[item, head])
                to = outs[0].at[items.chunk, head]

            @pl.when(count > 0)
            def _store() -> None:
                for part, at in zip(values, columns, strict=True):
                    self._store(part, out_at, to, row, count, at)

            end_at = done + blocks_between(begin, end)
            lax.fori_loop(now, end_at, partial(self._pass_by, shared), None)
            return end_at

        self._in_turn(numbers[0], attend_item)

    def _attend(
        self,
        shared: _AttentionShared,
        tile: Tile,
        first: Any,
        done: Any,
        step: Any,
        whole: Sums,
        *,
        masks: bool,
    ) -> Sums:
        """The sums over one more block. ``masks``: not all rows see all of it."""
        acc, most, weight = whole
        mine = lax.axis_index("wg")
        slot = (done + step) % self._stages
        plgpu.barrier_wait(shared.arrived.at[slot])
        values, factor = self._logits(shared.q.at[mine], shared.k.at[slot])
        # What becomes of a logit is written in the same way with a mask and without one, so that a
        # compiler makes the same of it.
        seen = tile.seen(first + step * BLOCK) if masks else None
        visible = values if seen is None else jnp.where(seen, values, jnp.full_like(values, LEAST))
        largest = (visible.max(axis=1) * factor).astype(jnp.int32) + 1
        higher = jnp.maximum(most, largest.astype(jnp.float32))
        shrink = power_of_two(most - higher)
        weights = jnp.exp2(values * factor - lax.broadcast_in_dim(higher, values.shape, [0]))
        if seen is not None:
            weights = jnp.where(seen, weights, jnp.zeros_like(weights))
        at = None if shared.weights is None else shared.weights.at[mine]
        left = mosaic.left_of_product(weights.astype(self.dtype), at)

        more: tuple[Array, ...] = ()
        for first_part in range(0, len(self._parts), self.tiles):
            parts = self._parts[first_part : first_part + self.tiles]

            def weigh(*products, parts=parts):  # type: ignore[no-untyped-def]
                for part, product in zip(parts, products, strict=True):
                    plgpu.wgmma(product, left, shared.v.at[slot, part])
                return tuple(product[...] for product in products)

            sums = [plgpu.ACC((TILE, self._width), jnp.float32) for _ in parts]
            more += pl.run_scoped(weigh, *sums)
        plgpu.barrier_arrive(shared.free.at[slot])
        after = tuple(scaled(a, shrink) + b for a, b in zip(acc, more, strict=True))
        return after, higher, weight * shrink + weights.sum(axis=1)

    def _pass_by(self, shared: _AttentionShared, step: Any, _: None) -> None:
        """A block that only the other tile of the item sees."""
        slot = step % self._stages
        plgpu.barrier_wait(shared.arrived.at[slot])
        plgpu.barrier_arrive(shared.free.at[slot])

    def _logits(self, q_at: Any, k_at: Any) -> tuple[Array, float]:
        """Of a tile and a block: values, and times what they are logits in powers of two."""

        def multiply(product):  # type: ignore[no-untyped-def]
            plgpu.wgmma(product, q_at, mosaic.transposed(k_at))
            return product[...]

        products: Array = pl.run_scoped(multiply, plgpu.ACC((TILE, BLOCK), jnp.float32))
        if self.soft_cap is None:
            return products, self.scale * math.log2(math.e)
        return jnp.tanh(products * (self.scale / self.soft_cap)), self.soft_cap * math.log2(math.e)

    def _store(
        self, values: Array, out_at: Any, out: Any, row: Any, tokens: Any, columns: Any
    ) -> None:
        """Some columns of a tile go out by way of shared memory, token by token: what follows is
        another request's."""
        out_at[...] = values
        plgpu.commit_smem()
        for token in range(TILE // self.group):
            own = pl.ds(token * self.group, self.group)
            there = pl.ds(row + token * self.group, self.group)

            @pl.when(token < tokens)
            def _store(own: Any = own, there: Any = there) -> None:
                plgpu.copy_smem_to_gmem(out_at.at[own], out.at[there, columns])

        plgpu.wait_smem_to_gmem(0)
