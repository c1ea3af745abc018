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
from fjx.kernels.mosaic import plgpu

TILE = 64
"""Rows of a tile: the least of a warpgroup's matrix product."""
BLOCK = 64
"""Positions whose keys and values are taken at once."""
_WIDTH = 128
"""Columns of the values that are taken at once: more do not fit into a warpgroup's registers."""
_RING_BYTES = 160 * 1024
"""Shared memory for keys and values on their way, at most."""
_FAR = 1 << 30
_LEAST = -float(1 << 24)
"""In place of minus infinity, whose differences are not numbers."""
_LAYOUT, _BY_ROW = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1)


class Items(NamedTuple):
    """Chunks of tiles. Entries are [I] int32; those behind the last one in use are none."""

    request: Any
    first_row: Any
    tokens: Any
    """Of the tile."""
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


class _Shared(NamedTuple):
    """What the warpgroups of a block share."""

    q: Any
    k: Any
    """A ring, as are the values."""
    v: Any
    weights: Any
    out: Any
    sums: Any
    arrived: Any
    """Barriers, for each place of the ring: keys and values are there."""
    free: Any
    """They are needed no more."""


@dataclass(frozen=True)
class Kernels:
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

    @property
    def _width(self) -> int:
        return min(self.head_dim, _WIDTH)

    @property
    def _parts(self) -> range:
        return range(self.head_dim // self._width)

    @property
    def _stages(self) -> int:
        """Places of the ring."""
        return max(2, min(5, _RING_BYTES // (2 * BLOCK * self.head_dim * 2)))

    def attend(self, items: int) -> Callable[..., Any]:
        """The kernel over so many items.

        From the number of items in use, the layer and the window; the items, [7, I]; the page
        tables, flat; queries [K, rows, D]; and pages [layers * pages * 2 * K, page_size, D]: for
        one chunk the output [K, rows, D], float32. For more, of each the weighted values
        [chunks, K, rows, D], and of each item [I, K, 64], what was taken from its logits and the
        sums of its weights.
        """
        K, D, width = self.kv_heads, self.head_dim, self._width
        stages, parts = self._stages, len(self._parts)
        copies = max(BLOCK // self.page_size, 1)
        swizzled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        scratch = [
            plgpu.SMEM((TILE, D), self.dtype, transforms=swizzled),
            plgpu.SMEM((stages, BLOCK, D), self.dtype, transforms=swizzled),
            plgpu.SMEM((stages, parts, BLOCK, width), self.dtype, transforms=swizzled),
            plgpu.SMEM((TILE, BLOCK), self.dtype, transforms=swizzled),
            plgpu.SMEM((TILE, width), jnp.float32),
            plgpu.SMEM((2, TILE), jnp.float32),
            plgpu.Barrier(num_arrivals=(1 + parts) * copies, num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
        ]
        results: tuple[Any, ...] = (self._result(),)
        if self.chunks > 1:
            by_row = mosaic.struct((items, K, TILE), jnp.float32)
            results = (self._result(self.chunks), by_row, by_row)
        count = len(results)

        def body(numbers, work, table, q, kv, *refs):  # type: ignore[no-untyped-def]
            outs, shared = refs[:count], _Shared(*refs[count:])
            bring = partial(self._bring_pages, numbers, work, table, kv, shared)
            multiply = partial(self._multiply, numbers, work, q, shared, outs)
            pl.when(lax.axis_index("wg") == 1)(bring)
            pl.when(lax.axis_index("wg") == 0)(multiply)

        return self._kernel("fjx_attend", body, results, scratch, warpgroups=2)

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
                        return _folded(
                            whole,
                            (
                                (mosaic.load(of_chunk, _LAYOUT),),
                                mosaic.load(top.at[item, head], _BY_ROW),
                                mosaic.load(sums.at[item, head], _BY_ROW),
                            ),
                        )

                    (acc,), _, weight = lax.fori_loop(0, chunks, add, _nothing(self._width, 1))
                    self._store(_divided(acc, weight), out_at, out.at[head], row, tokens, columns)
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
        """This block's share of so many things for each KV head: ``do`` takes one, the head, and
        what it gave for the one before, at first 0."""
        here = lax.axis_index("block")
        mine = (total * self.kv_heads - here + self.blocks - 1) // self.blocks

        def one(i, done):  # type: ignore[no-untyped-def]
            number = here + i * self.blocks
            return do(number // self.kv_heads, number % self.kv_heads, done)

        lax.fori_loop(0, mine, one, jnp.int32(0))

    def _bring_pages(self, numbers: Any, work: Any, table: Any, kv: Any, shared: _Shared) -> None:
        """What one warpgroup does: keys and values of all items go into the ring."""
        layer, K, page_size = numbers[1], self.kv_heads, self.page_size
        size = min(page_size, BLOCK)

        def bring_item(item, head, done):  # type: ignore[no-untyped-def]
            items = Items(*(work[i, item] for i in range(7)))
            begin = items.begin
            steps = _blocks(begin, items.end)
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
        self, numbers: Any, work: Any, q: Any, shared: _Shared, outs: tuple[Any, ...]
    ) -> None:
        """What the other warpgroup does: queries times keys, weights, weights times values."""
        window = numbers[2]

        def attend_item(item, head, done):  # type: ignore[no-untyped-def]
            items = Items(*(work[i, item] for i in range(7)))
            begin, end = items.begin, items.end
            count, position = items.tokens, items.position
            row = items.first_row * self.group
            # The memory engine would need rows at multiples of 8.
            shared.q[...] = mosaic.load(q.at[head, pl.ds(row, TILE)], _LAYOUT)
            plgpu.commit_smem()
            line = plgpu.broadcasted_iota(jnp.int32, (TILE, BLOCK), 0, layout=_LAYOUT)
            column = plgpu.broadcasted_iota(jnp.int32, (TILE, BLOCK), 1, layout=_LAYOUT)
            last_seen = position + line // self.group
            before_seen = last_seen - jnp.where(window > 0, window, _FAR)

            def attend(step, whole, first, done):  # type: ignore[no-untyped-def]
                acc, most, weight = whole
                slot, at = (done + step) % self._stages, first + step * BLOCK
                plgpu.barrier_wait(shared.arrived.at[slot])
                logits = self._logits(shared.q, shared.k.at[slot])
                seen = (column + at <= last_seen) & (column + at > before_seen)
                logits = jnp.where(seen, logits, jnp.full_like(logits, _LEAST))
                largest = logits.max(axis=1).astype(jnp.int32) + 1
                higher = jnp.maximum(most, largest.astype(jnp.float32))
                shrink = _power_of_two(most - higher)
                weights = jnp.exp2(logits - lax.broadcast_in_dim(higher, logits.shape, [0]))
                weights = jnp.where(seen, weights, jnp.zeros_like(weights))
                shared.weights[...] = weights.astype(self.dtype)
                written = position + count - at
                pl.when(written < BLOCK)(partial(self._clear, shared.v.at[slot], written))
                plgpu.commit_smem()
                after = []
                for part in self._parts:

                    def weigh(product, part=part):  # type: ignore[no-untyped-def]
                        plgpu.wgmma(product, shared.weights, shared.v.at[slot, part])
                        return product[...]

                    more = pl.run_scoped(weigh, plgpu.ACC((TILE, self._width), jnp.float32))
                    after.append(_scaled(acc[part], shrink) + more)
                plgpu.barrier_arrive(shared.free.at[slot])
                return tuple(after), higher, weight * shrink + weights.sum(axis=1)

            def attend_chunk(number, carry):  # type: ignore[no-untyped-def]
                whole, done = carry
                first = jnp.maximum(begin, number * self.chunk)
                steps = _blocks(first, jnp.minimum(end, (number + 1) * self.chunk))
                of_chunk = partial(attend, first=first, done=done)
                added = lax.fori_loop(0, steps, of_chunk, nothing)
                return _folded(whole, added), done + steps

            nothing = _nothing(self._width, len(self._parts))
            columns = [pl.ds(part * self._width, self._width) for part in self._parts]
            if self.chunks == 1:
                chunks = begin // self.chunk, (end - 1) // self.chunk + 1
                (acc, _, weight), _ = lax.fori_loop(*chunks, attend_chunk, (nothing, done))
                for part, at in zip(acc, columns, strict=True):
                    out = outs[0].at[head]
                    self._store(_divided(part, weight), shared.out, out, row, count, at)
            else:
                of_item = partial(attend, first=begin, done=done)
                acc, most, weight = lax.fori_loop(0, _blocks(begin, end), of_item, nothing)
                shared.sums[0], shared.sums[1] = most, weight
                plgpu.commit_smem()
                for i, to in enumerate(outs[1:]):
                    plgpu.copy_smem_to_gmem(shared.sums.at[i], to.at[item, head])
                for part, at in zip(acc, columns, strict=True):
                    out = outs[0].at[items.chunk, head]
                    self._store(part, shared.out, out, row, count, at)
            return done + _blocks(begin, end)

        self._in_turn(numbers[0], attend_item)

    def _logits(self, q_at: Any, k_at: Any) -> Array:
        """Of a tile and a block, in powers of two."""

        def multiply(product):  # type: ignore[no-untyped-def]
            plgpu.wgmma(product, q_at, mosaic.transposed(k_at))
            return product[...]

        products: Array = pl.run_scoped(multiply, plgpu.ACC((TILE, BLOCK), jnp.float32))
        if self.soft_cap is None:
            return products * (self.scale * math.log2(math.e))
        capped = jnp.tanh(products * (self.scale / self.soft_cap))
        return capped * (self.soft_cap * math.log2(math.e))

    def _clear(self, v_at: Any, written: Any) -> None:
        """Values in slots that were never written may be anything, and 0 * NaN is NaN."""
        line = plgpu.broadcasted_iota(jnp.int32, (BLOCK, self._width), 0, layout=_LAYOUT)
        for part in self._parts:
            values = plgpu.layout_cast(v_at[part], _LAYOUT)
            v_at[part] = jnp.where(line < written, values, jnp.zeros_like(values))

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


def _blocks(begin: Any, end: Any) -> Any:
    return (end - begin + BLOCK - 1) // BLOCK


_Sums = tuple[tuple[Array, ...], Array, Array]
"""Weighted values, by columns; the whole number that was taken from each logit, in powers of two;
and weights."""


def _nothing(width: int, parts: int) -> _Sums:
    """The sums over nothing."""
    zeros = plgpu.layout_cast(jnp.zeros((TILE, width), jnp.float32), _LAYOUT)
    return (
        (zeros,) * parts,
        plgpu.layout_cast(jnp.full((TILE,), _LEAST, jnp.float32), _BY_ROW),
        plgpu.layout_cast(jnp.zeros((TILE,), jnp.float32), _BY_ROW),
    )


def _folded(one: _Sums, other: _Sums) -> _Sums:
    """The sums over what both are over.

    Rescaling is by powers of two, and so without rounding: it does not matter to a bit whether a
    compiler fuses it with the addition, nor how often it is done.
    """
    (acc, most, weight), (more, top, added) = one, other
    higher = jnp.maximum(most, top)
    old, new = _power_of_two(most - higher), _power_of_two(top - higher)
    both = tuple(_scaled(a, old) + _scaled(b, new) for a, b in zip(acc, more, strict=True))
    return both, higher, weight * old + added * new


def _power_of_two(exponent: Array) -> Array:
    """2 to a whole number that is not positive; 0 where that is very small."""
    whole = jnp.maximum(exponent, -127.0).astype(jnp.int32)
    return lax.bitcast_convert_type((whole + 127) << 23, jnp.float32)


def _scaled(x: Array, by: Array) -> Array:
    return x * lax.broadcast_in_dim(by, x.shape, [0])


def _divided(x: Array, by: Array) -> Array:
    return x / lax.broadcast_in_dim(by, x.shape, [0])
