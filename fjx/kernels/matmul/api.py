"""The one product of the engine with a matrix of weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from fjx.kernels.matmul.packed import (
    PACKED_RANK,
    can_pack,
    pack,
    packed_matmul,
    packed_shape,
    unpack,
)
from fjx.kernels.vectors import HAS_BFLOAT16_PRODUCTS


def multiplies_bfloat16() -> bool:
    """Whether this platform multiplies bfloat16 at least as fast as float32."""
    return jax.default_backend() != "cpu" or HAS_BFLOAT16_PRODUCTS


def stored_struct(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    """How an (in, out) matrix of weights is stored on this platform: as it is, or packed."""
    stored = packed_shape(shape, dtype) if _packs(dtype) else shape
    return jax.ShapeDtypeStruct(stored, dtype)  # type: ignore[no-untyped-call]


def stored_values(matrix: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
    """The values of an (in, out) matrix, stored as `stored_struct` says."""
    if _packs(dtype):
        return pack(matrix, dtype)
    return matrix.astype(dtype, copy=False)


def restored_values(stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The (in, out) matrix of this shape that `stored_values` stored, in the stored type."""
    return unpack(stored, shape) if stored.ndim == PACKED_RANK else stored


def stored_axis(axis: int, dtype: jnp.dtype) -> int:
    """Along which axis of the stored array the shards of a matrix lie that is split along ``axis``,
    each of them stored by itself."""
    return 1 - axis if _packs(dtype) else axis


def matmul(x: Float[Array, "T I"], weights: Array, outputs: int) -> Float[Array, "T O"]:
    """``x @ weights`` in the type of the weights, summed in float32.

    Args:
        x: rows, of any float type.
        weights: an (in, out) matrix as `stored_values` gives it.
        outputs: columns of the matrix.
    """
    if weights.ndim == PACKED_RANK:
        return packed_matmul(x, weights, outputs)
    y: Array = lax.dot_general(
        x.astype(weights.dtype),
        weights,
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return y


def _packs(dtype: jnp.dtype) -> bool:
    return jax.default_backend() == "cpu" and can_pack(dtype)
