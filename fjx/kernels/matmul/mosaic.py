"""Products with matrices of bfloat16, or of eight bits an entry, on Hopper GPUs, in Pallas for
Mosaic GPU.

For decoding, where reading the matrix is what takes time. A tile is some columns of the matrix, a
step `STEP` of its rows. All steps of all tiles, tile by tile, are cut into equal shares, as many as
a GPU has multiprocessors; as many blocks as the caller allows take the shares in turn. In each, one
warpgroup lets the memory engine bring steps of the matrix and of the rows into a ring of shared
memory. The others make their columns bfloat16 where they are narrower, write them back to shared
memory, and multiply: the matrix's columns are the rows of the tensor cores' product, of which there
are never fewer than 64.

*A row has the same bits whatever is beside it.* Where the matrix is cut follows from its shape
alone. Each product is of `ROWS` rows, of which only those are brought that there are: what a place
of the ring holds behind them reaches no other row. More rows are taken `ROWS` at a time. The shares
of a tile are added in their order.

*Bytes under way.* A place of the ring holds 16 KiB of a matrix of eight bits, and there are six:
96 KiB a multiprocessor, 12.4 MiB on all of an H100, which brings 3.4 MB in the microsecond that
memory takes to answer. Of bfloat16 there are four of 32 KiB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int32

from fjx.kernels import mosaic
from fjx.kernels.matmul.quantized import Quantized
from fjx.kernels.mosaic import plgpu

STEP = 64
"""Rows of the matrix that are multiplied at once."""
ROWS = 64
"""Rows of x in a product."""
_SHARES = 132
"""Multiprocessors of an H100."""
_LEAST_STEPS = 4
"""Of a share: a share costs its sums' way to memory and back."""
_RING = {1: 6, 2: 4}
"""Places, by the bytes of an entry."""
_MULTIPLYING_REGISTERS, _BRINGING_REGISTERS = 232, 40
_LAYOUT, _NARROW_LAYOUT = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA_UPCAST_2X


class Parts(NamedTuple):
    """Runs of steps, each within a tile. Entries are [N] int32."""

    tile: Any
    first: Any
    """Of its steps."""
    steps: Any
    number: Any
    """Among the parts of the tile."""


class _MatmulShared(NamedTuple):
    """What the warpgroups of a block share."""

    matrix: Any
    """A ring, as are the rows."""
    x: Any
    sums: Any
    """Of each warpgroup that multiplies, on their way out."""
    arrived: Any
    """Barriers, for each place of the ring."""
    free: Any
    wide: Any = None
    """Of each warpgroup, its columns as bfloat16, where they are narrower."""


def fits(inputs: int, outputs: int) -> bool:
    """Whether the kernel takes a matrix of this shape."""
    return inputs % STEP == 0 and outputs % 64 == 0


def matmul(
    x: Float[Array, "T I"],
    weights: Array | Quantized,
    outputs: int,
    *,
    blocks: int = _SHARES,
) -> Float[Array, "T O"]:
    """``x @ weights`` in float32, with rows rounded to bfloat16.

    Args:
        x: rows, of any float type.
        weights: (in, out), bfloat16 or quantized; see `fits`.
        outputs: columns of the matrix.
        blocks: of the grid; fewer than the GPU has multiprocessors leave the others to whatever
            runs beside it.

    Raises:
        ValueError: the kernel does not take a matrix of this shape.
    """
    T, inputs = x.shape
    if not fits(inputs, outputs):
        raise ValueError(
            "the kernel takes matrices whose sides are multiples of 64, "
            f"got ({inputs}, {outputs}); use reference"
        )
    values, scale = weights if isinstance(weights, Quantized) else (weights, None)
    rows = min(ROWS, _next_power_of_two(max(T, 8))) if T <= ROWS else -(-T // ROWS) * ROWS
    kernel = _MatmulKernel(inputs, outputs, values.dtype, rows, blocks)
    parts, first_part = cut(outputs // kernel.columns, inputs // STEP)
    # The memory engine takes whole lines: rows that are not there are zeros.
    x = jnp.pad(x.astype(jnp.bfloat16), ((0, rows - T), (0, 0)))
    count = max(parts.number) + 1
    sums = kernel(count)(first_part, np.stack(parts), x, values)
    there = np.zeros((count, outputs // kernel.columns), bool)
    there[parts.number, parts.tile] = True
    by_column = np.repeat(there, kernel.columns, axis=1)[:, :, None]
    total = jnp.zeros(sums.shape[1:], jnp.float32)
    for part, is_there in zip(sums, by_column, strict=True):
        total += jnp.where(is_there, part, 0.0)
    product: Array = total if scale is None else total * scale[:, None]
    return product.T[:T]


@cache
def cut(tiles: int, steps: int) -> tuple[Parts, Int32[np.ndarray, " S"]]:
    """The parts of ``tiles`` tiles of ``steps`` steps each, share by share; and the index of the
    first part of each share, followed by the number of parts."""
    total = tiles * steps
    share = max(-(-total // _SHARES), _LEAST_STEPS)
    ends = sorted({*range(share, total, share), *range(steps, total, steps), total})
    begins = [0, *ends[:-1]]
    tile = np.array([begin // steps for begin in begins], np.int32)
    parts = Parts(
        tile,
        np.array([begin % steps for begin in begins], np.int32),
        np.array([end - begin for begin, end in zip(begins, ends, strict=True)], np.int32),
        np.arange(len(begins), dtype=np.int32) - np.searchsorted(tile, tile).astype(np.int32),
    )
    first = np.searchsorted(begins, [*range(0, total, share), total]).astype(np.int32)
    return parts, first


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class _MatmulKernel:
    """The product of some sizes."""

    inputs: int
    outputs: int
    dtype: Any
    """Of the matrix."""
    rows: int
    """8, 16, 32, or a multiple of `ROWS`."""
    blocks: int

    @property
    def _warpgroups(self) -> int:
        """Those that multiply."""
        return 2 if self.outputs % 128 == 0 else 1

    @property
    def _own(self) -> int:
        """Columns of the matrix that a warpgroup multiplies."""
        return 128 if self.outputs % 256 == 0 else 64

    @property
    def _narrow(self) -> bool:
        return bool(jnp.dtype(self.dtype).itemsize == 1)

    @property
    def _ring(self) -> int:
        return _RING[jnp.dtype(self.dtype).itemsize]

    @property
    def columns(self) -> int:
        """Of a tile."""
        return self._warpgroups * self._own

    @property
    def _rows_at_once(self) -> int:
        """Those that are brought and stored."""
        return min(self.rows, ROWS)

    def __call__(self, parts: int) -> Callable[..., Any]:
        """From the first part of each share, the parts [4, N], x [rows, in] and the matrix
        (in, out): for each of a tile's parts the sums [parts, out, rows], without the
        scale."""
        wide_lines = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        narrow_lines = (plgpu.TilingTransform((8, self._own)), plgpu.SwizzleTransform(self._own))
        lines = narrow_lines if self._narrow else wide_lines
        groups, ring = self._warpgroups, self._ring
        scratch = [
            plgpu.SMEM((ring, groups, STEP, self._own), self.dtype, transforms=lines),
            plgpu.SMEM((ring, ROWS, STEP), jnp.bfloat16, transforms=wide_lines),
            plgpu.SMEM((groups, 64, self._rows_at_once), jnp.float32),
            plgpu.Barrier(num_arrivals=1 + groups, num_barriers=ring),
            plgpu.Barrier(num_arrivals=groups, num_barriers=ring),
        ]
        if self._narrow:
            wide = (groups, STEP, self._own)
            scratch.append(plgpu.SMEM(wide, jnp.bfloat16, transforms=wide_lines))

        def body(first_part, parts, x, matrix, out, *refs):  # type: ignore[no-untyped-def]
            shared = _MatmulShared(*refs)
            shares = first_part.shape[0] - 1
            bring = partial(self._bring, shares, first_part, parts, x, matrix, shared)
            multiply = partial(self._multiply, shares, first_part, parts, shared, out)
            group = lax.axis_index("wg")
            pl.when(group == groups)(bring)
            pl.when(group < groups)(multiply)

        return mosaic.kernel(
            body,
            results=mosaic.struct((parts, self.outputs, self.rows), jnp.float32),
            scratch=scratch,
            grid=(self.blocks,),
            grid_names=("block",),
            warpgroups=groups + 1,
            name="fjx_matmul",
        )

    def _in_turn(
        self, shares: int, first_part: Any, parts: Any, do: Callable[[Parts, Any, Any], Any]
    ) -> None:
        """This block's shares: ``do`` takes a part, which `ROWS` rows, and the steps done before,
        and gives those done after."""
        here = lax.axis_index("block")
        mine = (shares - here + self.blocks - 1) // self.blocks
        row_tiles = -(-self.rows // ROWS)

        def one_share(i, done):  # type: ignore[no-untyped-def]
            share = here + i * self.blocks

            def one(j, done):  # type: ignore[no-untyped-def]
                part = Parts(*(parts[k, j // row_tiles] for k in range(4)))
                return do(part, j % row_tiles, done)

            begin, end = first_part[share], first_part[share + 1]
            return lax.fori_loop(begin * row_tiles, end * row_tiles, one, done)

        lax.fori_loop(0, mine, one_share, jnp.int32(0))

    def _bring(
        self, shares: int, first_part: Any, parts: Any, x: Any, matrix: Any, shared: _MatmulShared
    ) -> None:
        """What one warpgroup does: steps of all parts go into the ring."""
        self._set_registers(_BRINGING_REGISTERS, "decrease")

        def bring_part(part, row_tile, done):  # type: ignore[no-untyped-def]
            here = pl.ds(pl.multiple_of(row_tile * ROWS, self._rows_at_once), self._rows_at_once)

            def bring(step, _):  # type: ignore[no-untyped-def]
                slot = (done + step) % self._ring
                used = done + step >= self._ring
                pl.when(used)(lambda: plgpu.barrier_wait(shared.free.at[slot]))
                arrived = shared.arrived.at[slot]
                lines = pl.ds(pl.multiple_of((part.first + step) * STEP, STEP), STEP)
                for group in range(self._warpgroups):
                    column = part.tile * self.columns + group * self._own
                    columns = pl.ds(pl.multiple_of(column, self._own), self._own)
                    to = shared.matrix.at[slot, group]
                    plgpu.copy_gmem_to_smem(matrix.at[lines, columns], to, arrived)
                to = shared.x.at[slot, pl.ds(0, self._rows_at_once)]
                plgpu.copy_gmem_to_smem(x.at[here, lines], to, arrived)

            lax.fori_loop(0, part.steps, bring, None)
            return done + part.steps

        self._in_turn(shares, first_part, parts, bring_part)

    def _multiply(
        self, shares: int, first_part: Any, parts: Any, shared: _MatmulShared, out: Any
    ) -> None:
        """What the others do: their columns become bfloat16, and are multiplied with the rows."""
        self._set_registers(_MULTIPLYING_REGISTERS, "increase")
        group = lax.axis_index("wg")
        on_the_way = shared.sums.at[group]

        def multiply_part(part, row_tile, done):  # type: ignore[no-untyped-def]
            def add(step, sums):  # type: ignore[no-untyped-def]
                slot = (done + step) % self._ring
                plgpu.barrier_wait(shared.arrived.at[slot])
                columns = shared.matrix.at[slot, group]
                if self._narrow:
                    narrow = plgpu.layout_cast(columns[...], _NARROW_LAYOUT)
                    columns = shared.wide.at[group]
                    columns[...] = self._widened(narrow)
                    plgpu.commit_smem()

                def multiply(product):  # type: ignore[no-untyped-def]
                    rows = mosaic.transposed(shared.x.at[slot])
                    plgpu.wgmma(product, mosaic.transposed(columns), rows)
                    return product[...]

                more = pl.run_scoped(multiply, plgpu.ACC((self._own, ROWS), jnp.float32))
                plgpu.barrier_arrive(shared.free.at[slot])
                return sums + more

            nothing = plgpu.layout_cast(jnp.zeros((self._own, ROWS), jnp.float32), _LAYOUT)
            sums = lax.fori_loop(0, part.steps, add, nothing)
            here = pl.ds(pl.multiple_of(row_tile * ROWS, self._rows_at_once), self._rows_at_once)
            for begin in range(0, self._own, 64):
                on_the_way[...] = sums[begin : begin + 64, : self._rows_at_once]
                plgpu.commit_smem()
                column = part.tile * self.columns + group * self._own + begin
                columns = pl.ds(pl.multiple_of(column, 64), 64)
                plgpu.copy_smem_to_gmem(on_the_way, out.at[part.number, columns, here])
                plgpu.wait_smem_to_gmem(0)
            return done + part.steps

        self._in_turn(shares, first_part, parts, multiply_part)

    def _set_registers(self, count: int, action: str) -> None:
        """Of a thread: the sums of two warpgroups need more than a third of all each."""
        if self._warpgroups == 2:
            plgpu.set_max_registers(count, action=action)

    def _widened(self, narrow: Array) -> Array:
        """As bfloat16, which nothing is rounded for."""
        if self.dtype == jnp.float8_e4m3fn:  # a GPU makes it a float16, and that a float32
            narrow = narrow.astype(jnp.float32)
        return narrow.astype(jnp.bfloat16)
