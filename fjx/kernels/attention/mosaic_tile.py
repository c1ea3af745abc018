"""The arithmetic of a tile of queries over blocks of keys and values, in registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from fjx.kernels.mosaic import plgpu

TILE = 64
"""Rows of a tile: the least of a warpgroup's matrix product."""
BLOCK = 64
"""Positions whose keys and values are taken at once."""
LEAST = -float(1 << 24)
"""In place of minus infinity, whose differences are not numbers."""
LAYOUT, BY_ROW = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1)
_FAR = 1 << 30


@dataclass(frozen=True)
class Tile:
    """Which positions the rows of a tile see."""

    position: Any
    """Of its first token."""
    count: Any
    """Tokens."""
    window: Any
    group: int
    """Rows of a token."""

    def seen(self, first: Any) -> Array:
        """Of the block that begins at a position, by row."""
        line = plgpu.broadcasted_iota(jnp.int32, (TILE, BLOCK), 0, layout=LAYOUT)
        column = plgpu.broadcasted_iota(jnp.int32, (TILE, BLOCK), 1, layout=LAYOUT)
        last = self.position + line // self.group
        before = last - jnp.where(self.window > 0, self.window, _FAR)
        seen: Array = (column + first <= last) & (column + first > before)
        return seen

    def seen_by_all(self, first: Any, steps: Any) -> tuple[Any, Any]:
        """Among ``steps`` blocks from position ``first`` on, the first that all rows see as a
        whole, and the first one behind it that they do not."""
        oldest = jnp.where(self.window > 0, self.position + self.count - self.window, 0)
        start = jnp.clip(blocks_between(first, oldest), 0, steps)
        return start, jnp.clip((self.position + 1 - first) // BLOCK, start, steps)


def blocks_between(begin: Any, end: Any) -> Any:
    """How many blocks it takes from one position up to another."""
    return (end - begin + BLOCK - 1) // BLOCK


Sums = tuple[tuple[Array, ...], Array, Array]
"""Weighted values, by columns; the whole number that was taken from each logit, in powers of two;
and weights."""


def nothing_yet(width: int, parts: int) -> Sums:
    """The sums over nothing."""
    zeros = plgpu.layout_cast(jnp.zeros((TILE, width), jnp.float32), LAYOUT)
    return (
        (zeros,) * parts,
        plgpu.layout_cast(jnp.full((TILE,), LEAST, jnp.float32), BY_ROW),
        plgpu.layout_cast(jnp.zeros((TILE,), jnp.float32), BY_ROW),
    )


def folded(one: Sums, other: Sums) -> Sums:
    """The sums over what both are over.

    Rescaling is by powers of two, and so without rounding: it does not matter to a bit whether a
    compiler fuses it with the addition, nor how often it is done.
    """
    (acc, most, weight), (more, top, added) = one, other
    higher = jnp.maximum(most, top)
    old, new = power_of_two(most - higher), power_of_two(top - higher)
    both = tuple(scaled(a, old) + scaled(b, new) for a, b in zip(acc, more, strict=True))
    return both, higher, weight * old + added * new


def power_of_two(exponent: Array) -> Array:
    """2 to a whole number that is not positive; 0 where that is very small."""
    whole = jnp.maximum(exponent, -127.0).astype(jnp.int32)
    return lax.bitcast_convert_type((whole + 127) << 23, jnp.float32)


def scaled(x: Array, by: Array) -> Array:
    """Each row times its own number."""
    return x * lax.broadcast_in_dim(by, x.shape, [0])


def divided(x: Array, by: Array) -> Array:
    """Each row over its own number."""
    return x / lax.broadcast_in_dim(by, x.shape, [0])
