"""Pages moved by the memory engine of Hopper GPUs, in Pallas for Mosaic GPU.

A page of a layer lies in one piece, and is cut into pieces that fit into shared memory. Blocks, as
many as the caller allows, take the pieces in turn; each has some on their way in and one on its
way out at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import gcd, prod
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Int32

from fjx.kernels import mosaic
from fjx.kernels.mosaic import plgpu

_STAGES = 4
"""Pieces that a block has in shared memory."""
_PIECE_BYTES = 16 * 1024
"""Of a piece, at most: with `_STAGES`, what memory's latency needs on its way to each
multiprocessor, twice."""
_WIDEST = 256
"""Elements of a line, and lines of a piece, at most: the memory engine takes no more at once."""
_ALIGNED = 128
"""Bytes: where the memory engine may write to in shared memory."""


def take_pages(kv_pages: Array, pages: Int32[Array, " N"], blocks: int = 132) -> Array:
    """See `fjx.kernels.kv_pages.api.take_pages`. ``blocks``: of the grid, at most."""
    copy = _PageCopy.of(kv_pages.shape, kv_pages.dtype, len(pages), blocks)
    (taken,) = copy.kernel(takes=True)(pages, kv_pages.reshape(copy.memory_shape))
    contents: Array = taken.reshape(len(kv_pages), len(pages), *kv_pages.shape[2:])
    return contents


def put_pages(
    kv_pages: Array, pages: Int32[Array, " N"], contents: Array, blocks: int = 132
) -> Array:
    """See `fjx.kernels.kv_pages.api.put_pages`. ``blocks``: of the grid, at most."""
    copy = _PageCopy.of(kv_pages.shape, kv_pages.dtype, len(pages), blocks)
    put = copy.kernel(takes=False)
    given = contents.reshape(copy.contents_shape)
    change = pl.run_state(lambda memory: put(pages, given, memory))
    after: Array = change(kv_pages.reshape(copy.memory_shape)).reshape(kv_pages.shape)
    return after


def fits(kv_pages_shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether the memory engine takes pages of this shape and type."""
    line_bytes: int = gcd(prod(kv_pages_shape[2:]), _WIDEST) * jnp.dtype(dtype).itemsize
    return line_bytes % _ALIGNED == 0


@dataclass(frozen=True)
class _PageCopy:
    """Some pages of each layer, in pieces."""

    layers: int
    pages: int
    """Of a layer."""
    count: int
    """Pages that are moved."""
    pieces: int
    """Of a page."""
    piece: tuple[int, int]
    """Lines, and elements of each."""
    dtype: Any
    blocks: int

    @classmethod
    def of(cls, kv_pages_shape: tuple[int, ...], dtype: Any, count: int, blocks: int) -> _PageCopy:
        """The copy of ``count`` pages from a KV memory of this shape, or to it."""
        if not fits(kv_pages_shape, dtype):
            raise ValueError(
                f"a page of shape {kv_pages_shape[2:]} and type {jnp.dtype(dtype)} cannot be cut "
                f"into lines of a multiple of {_ALIGNED} bytes and at most {_WIDEST} elements; "
                "use implementation='reference'"
            )
        layers, pages, *page = kv_pages_shape
        width = gcd(prod(page), _WIDEST)
        lines = prod(page) // width
        most = min(_WIDEST, _PIECE_BYTES // (width * jnp.dtype(dtype).itemsize))
        height = max(n for n in range(1, most + 1) if lines % n == 0)
        pieces = lines // height
        blocks = min(blocks, layers * count * pieces)
        return cls(layers, pages, count, pieces, (height, width), dtype, blocks)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.layers * self.pages, self.pieces, *self.piece

    @property
    def contents_shape(self) -> tuple[int, ...]:
        return self.layers * self.count, self.pieces, *self.piece

    def kernel(self, *, takes: bool) -> Any:
        """From page ids and the memory, the contents; or, from ids, contents and the memory, which
        it changes, nothing."""

        def body(ids, first, second, ring, arrived):  # type: ignore[no-untyped-def]
            memory, contents = (first, second) if takes else (second, first)
            here = lax.axis_index("block")
            total = self.layers * self.count * self.pieces
            mine = (total - here + self.blocks - 1) // self.blocks

            def ends(number: Any) -> tuple[Any, Any]:
                item = here + number * self.blocks
                page, piece = item // self.pieces, item % self.pieces
                layer, i = page // self.count, page % self.count
                there = memory.at[layer * self.pages + ids[i], piece]
                own = contents.at[page, piece]
                return (there, own) if takes else (own, there)

            def bring(number: Any) -> None:
                slot = number % _STAGES
                source, _ = ends(number)
                plgpu.copy_gmem_to_smem(source, ring.at[slot], arrived.at[slot])

            def send(number, _):  # type: ignore[no-untyped-def]
                slot = number % _STAGES
                plgpu.barrier_wait(arrived.at[slot])
                _, target = ends(number)
                plgpu.copy_smem_to_gmem(ring.at[slot], target)
                # The next one comes to where the one before was, once that has been read.
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                following = number + _STAGES - 1
                pl.when(following < mine)(partial(bring, following))

            for number in range(_STAGES - 1):
                pl.when(number < mine)(partial(bring, number))
            lax.fori_loop(0, mine, send, None)
            plgpu.wait_smem_to_gmem(0)

        results = (mosaic.struct(self.contents_shape, self.dtype),) if takes else ()
        return mosaic.kernel(
            body,
            results=results,
            scratch=[
                plgpu.SMEM((_STAGES, *self.piece), self.dtype),
                plgpu.Barrier(num_barriers=_STAGES),
            ],
            grid=(self.blocks,),
            grid_names=("block",),
            warpgroups=1,
            name="fjx_take_pages" if takes else "fjx_put_pages",
        )
