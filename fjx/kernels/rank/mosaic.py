"""Ranks of drafted tokens on Hopper GPUs, in Pallas for Mosaic GPU: logits never reach memory.

A tile of 64 rows times a tile of 64 columns is a work item. As many blocks as the caller allows
take the items in turn; the row tiles of a column tile are neighbours, so that weights are read from
memory once. In a block one warpgroup lets the memory engine bring rows and columns into a ring of
shared memory, 64 terms of their products at a time; the other one multiplies, adds the noise, and
counts what is larger than the row's drafted token.

The values of the drafted tokens come first, from their own columns by the same instructions in the
same order: no token is larger than itself for another rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int32

from fjx.kernels import mosaic
from fjx.kernels.mosaic import plgpu
from fjx.kernels.rank.rows import DraftedRows
from fjx.kernels.token_rule.noise import noise_of
from fjx.kernels.token_rule.reference import mix, row_bits, token_bits

TILE = 64
"""Rows, columns and terms that are taken at once."""
_STAGES = 8
"""Places of the ring, of 16 KiB each."""
_LAYOUT = plgpu.Layout.WGMMA
_BY_ROW, _BY_COLUMN = _LAYOUT.reduce(1), _LAYOUT.reduce(0)
_LOG2_E = 1.4426950408889634


def drafted_ranks(
    hidden: Float[Array, "T D"],
    unembed: Float[Array, "D V"],
    token_ids: Int32[Array, " V"],
    rows: DraftedRows,
    *,
    soft_cap: float | None,
    blocks: int = 132,
) -> Int32[Array, " T"]:
    """See `fjx.kernels.rank.api.drafted_ranks`.

    Args:
        blocks: of the grid; fewer than the GPU has multiprocessors leave the others to whatever
            runs beside it.
    """
    if not fits(unembed.shape, unembed.dtype):
        raise ValueError(
            f"the rank kernel multiplies 16-bit matrices whose sizes are multiples of {TILE}, not "
            f"{unembed.dtype} {unembed.shape}; use the implementation 'reference'"
        )
    T = len(hidden)
    hidden = _padded(hidden.astype(unembed.dtype))
    drafted = jnp.maximum(_padded(rows.drafted), 0)
    hot = rows.temperature > 0
    noise = _Noise(
        _padded(1 / jnp.where(hot, rows.temperature, 1.0)),
        _padded(hot.astype(jnp.float32)),
        _padded(row_bits(rows.seed, rows.position)),
        token_bits(token_ids),
    )
    D, V = unembed.shape
    kernels = _RankKernels(len(hidden) // TILE, D, V, unembed.dtype, soft_cap, blocks)
    own_columns = jnp.take(unembed, drafted, axis=1)
    of_own = noise._replace(of_column=noise.of_column[drafted])
    own = kernels.own_values()(*of_own, hidden, own_columns)
    counts = kernels.count()(own, *noise, hidden, unembed)
    ranks: Array = counts.sum(axis=0).reshape(-1)[:T]
    return ranks


def fits(shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether the kernel takes an unembedding of this shape and type."""
    whole = len(shape) == 2 and all(size % TILE == 0 for size in shape)
    return whole and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def _padded(x: Array) -> Array:
    """To whole tiles of rows, with zeros."""
    return jnp.pad(x, [(0, -len(x) % TILE)] + [(0, 0)] * (x.ndim - 1))


class _Noise(NamedTuple):
    """How logits become the values that compete."""

    factor: Any
    """One over each row's temperature; 1 for a greedy one."""
    heat: Any
    """1; 0 for a greedy row."""
    of_row: Any
    """See `row_bits`."""
    of_column: Any
    """See `token_bits`."""


class _RankShared(NamedTuple):
    """What the warpgroups of a block share."""

    rows: Any
    """A ring, as are the columns."""
    columns: Any
    arrived: Any
    """Barriers, for each place of the ring: rows and columns are there."""
    free: Any
    """They are needed no more."""


@dataclass(frozen=True)
class _RankKernels:
    """Ranks of some sizes."""

    tiles: int
    """Of rows."""
    terms: int
    """Of a product."""
    vocabulary: int
    dtype: Any
    soft_cap: float | None
    blocks: int

    def own_values(self) -> Callable[..., Any]:
        """From the noise, rows [R, D] and as many columns [D, R], with each row's own at its
        place: their values [R / 64, 64]."""

        def body(*refs):  # type: ignore[no-untyped-def]
            noise, shared = _Noise(*refs[:4]), _RankShared(*refs[7:])
            rows, columns, values = refs[4:7]
            line = plgpu.broadcasted_iota(jnp.int32, (TILE, TILE), 0, layout=_LAYOUT)
            column = plgpu.broadcasted_iota(jnp.int32, (TILE, TILE), 1, layout=_LAYOUT)

            def place(item: Any) -> tuple[Any, Any]:
                return item, item

            def keep(item, found):  # type: ignore[no-untyped-def]
                others = jnp.full_like(found, -jnp.inf)
                values[item] = jnp.where(line == column, found, others).max(axis=1)

            @pl.when(lax.axis_index("wg") == 1)
            def _bring() -> None:
                self._bring(rows, columns, shared, self.tiles, place)

            @pl.when(lax.axis_index("wg") == 0)
            def _keep() -> None:
                self._multiply(noise, shared, self.tiles, place, keep)

        result = mosaic.struct((self.tiles, TILE), jnp.float32)
        return self._kernel("fjx_own_values", body, result, self._ring())

    def count(self) -> Callable[..., Any]:
        """From the values of the drafted tokens [R / 64, 64], the noise, rows [R, D] and columns
        [D, V]: how many tokens of each block's items are larger, [blocks, R / 64, 64]."""
        items = self.tiles * self.vocabulary // TILE

        def body(own, *refs):  # type: ignore[no-untyped-def]
            noise, shared = _Noise(*refs[:4]), _RankShared(*refs[8:])
            rows, columns, out, counts = refs[4:8]

            def place(item: Any) -> tuple[Any, Any]:
                return item % self.tiles, item // self.tiles

            def clear(tile, _):  # type: ignore[no-untyped-def]
                counts[tile] = plgpu.layout_cast(jnp.zeros(TILE, jnp.int32), _BY_ROW)

            def count(item, found):  # type: ignore[no-untyped-def]
                tile, _ = place(item)
                mine = lax.broadcast_in_dim(mosaic.load(own.at[tile], _BY_ROW), found.shape, [0])
                larger = (found > mine).astype(jnp.int32).sum(axis=1)
                counts[tile] = mosaic.load(counts.at[tile], _BY_ROW) + larger

            @pl.when(lax.axis_index("wg") == 1)
            def _bring() -> None:
                self._bring(rows, columns, shared, items, place)

            @pl.when(lax.axis_index("wg") == 0)
            def _count() -> None:
                lax.fori_loop(0, self.tiles, clear, None)
                self._multiply(noise, shared, items, place, count)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(counts, out.at[lax.axis_index("block")])
                plgpu.wait_smem_to_gmem(0)

        result = mosaic.struct((self.blocks, self.tiles, TILE), jnp.int32)
        scratch = [plgpu.SMEM((self.tiles, TILE), jnp.int32), *self._ring()]
        return self._kernel("fjx_count", body, result, scratch)

    def _ring(self) -> list[Any]:
        swizzled = (plgpu.TilingTransform((8, TILE)), plgpu.SwizzleTransform(128))
        return [
            plgpu.SMEM((_STAGES, TILE, TILE), self.dtype, transforms=swizzled),
            plgpu.SMEM((_STAGES, TILE, TILE), self.dtype, transforms=swizzled),
            plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
            plgpu.Barrier(num_barriers=_STAGES),
        ]

    def _kernel(self, name: str, body: Any, result: Any, scratch: Any) -> Callable[..., Any]:
        return mosaic.kernel(
            body,
            results=result,
            scratch=scratch,
            grid=(self.blocks,),
            grid_names=("block",),
            warpgroups=2,
            name=name,
        )

    @property
    def _steps(self) -> int:
        return self.terms // TILE

    def _in_turn(self, items: int, do: Callable[[Any, Any], None]) -> None:
        """Do this block's share of ``items`` items: ``do`` takes an item, and the number of steps
        of the ring before it."""
        here = lax.axis_index("block")
        mine = (items - here + self.blocks - 1) // self.blocks

        def one(i, _):  # type: ignore[no-untyped-def]
            do(here + i * self.blocks, i * self._steps)

        lax.fori_loop(0, mine, one, None)

    def _bring(self, rows: Any, columns: Any, shared: _RankShared, items: int, place: Any) -> None:
        """What one warpgroup does: rows and columns of all items go into the ring."""

        def bring_item(item, done):  # type: ignore[no-untyped-def]
            tile, column = place(item)

            def bring(step, _):  # type: ignore[no-untyped-def]
                slot = (done + step) % _STAGES
                used = done + step >= _STAGES
                pl.when(used)(lambda: plgpu.barrier_wait(shared.free.at[slot]))
                for source, to in (
                    (rows.at[_tile(tile), _tile(step)], shared.rows),
                    (columns.at[_tile(step), _tile(column)], shared.columns),
                ):
                    plgpu.copy_gmem_to_smem(source, to.at[slot], shared.arrived.at[slot])

            lax.fori_loop(0, self._steps, bring, None)

        self._in_turn(items, bring_item)

    def _multiply(
        self, noise: _Noise, shared: _RankShared, items: int, place: Any, take: Callable[..., None]
    ) -> None:
        """What the other warpgroup does: ``take`` gets each item and its values [64, 64]."""

        def multiply_item(item, done):  # type: ignore[no-untyped-def]
            tile, column = place(item)

            def multiply(product):  # type: ignore[no-untyped-def]
                def add(step, _):  # type: ignore[no-untyped-def]
                    slot = (done + step) % _STAGES
                    plgpu.barrier_wait(shared.arrived.at[slot])
                    plgpu.wgmma(product, shared.rows.at[slot], shared.columns.at[slot])
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(shared.free.at[slot])

                lax.fori_loop(0, self._steps, add, None)
                return product[...]

            logits = pl.run_scoped(multiply, plgpu.ACC((TILE, TILE), jnp.float32))
            take(item, self._values(logits, noise, tile, column))

        self._in_turn(items, multiply_item)

    def _values(self, logits: Array, noise: _Noise, tile: Any, column: Any) -> Array:
        """What competes, of a tile of products."""
        if self.soft_cap is not None:
            logits = self.soft_cap * _tanh(logits * (1 / self.soft_cap))

        def by_row(ref: Any) -> Array:
            values = mosaic.load(ref.at[_tile(tile)], _BY_ROW)
            return lax.broadcast_in_dim(values, logits.shape, [0])

        of_column = mosaic.load(noise.of_column.at[_tile(column)], _BY_COLUMN)
        bits = by_row(noise.of_row) ^ lax.broadcast_in_dim(of_column, logits.shape, [1])
        return logits * by_row(noise.factor) + by_row(noise.heat) * noise_of(mix(bits))


def _tile(number: Any) -> Any:
    return pl.ds(pl.multiple_of(number * TILE, TILE), TILE)


def _tanh(x: Array) -> Array:
    """Within 4e-7; the fast instruction is right to 5e-4 only."""
    power = jnp.exp2(jnp.abs(x) * (-2 * _LOG2_E))
    return jnp.sign(x) * ((1 - power) / (1 + power))
