"""The one product of the engine with a matrix of weights."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32

from fjx.kernels.matmul.packed import (
    PACKED_RANK,
    can_pack,
    pack,
    pack_scale,
    packed_columns,
    packed_matmul,
    packed_shape,
    unpack,
)
from fjx.kernels.matmul.quantized import (
    STORED_TYPES,
    Quantization,
    Quantized,
    quantization_of,
)
from fjx.kernels.vectors import HAS_BFLOAT16_PRODUCTS

Implementation = Literal["reference", "numba", "mosaic"]


def multiplies_bfloat16() -> bool:
    """Whether this platform multiplies bfloat16 at least as fast as float32."""
    return jax.default_backend() != "cpu" or HAS_BFLOAT16_PRODUCTS


def can_multiply_quantized(dtype: jnp.dtype) -> bool:
    """Whether matrices of eight bits an entry multiply rows of this type on this platform."""
    return dtype == jnp.bfloat16 or jax.default_backend() == "cpu"


def stored_struct(
    shape: tuple[int, ...], dtype: jnp.dtype, quantization: Quantization | None = None
) -> Any:
    """How an (in, out) matrix of weights is stored on this platform: as it is, or packed.

    Returns:
        A `jax.ShapeDtypeStruct`, or with ``quantization`` a `Quantized` of two.
    """
    packs = _packs(dtype, quantization)
    stored = packed_shape(shape, dtype) if packs else shape
    if quantization is None:
        return _struct(stored, dtype)
    scale = (stored[0], stored[2]) if packs else shape[1:]
    return Quantized(_struct(stored, STORED_TYPES[quantization]), _struct(scale, jnp.float32))


def stored_values(matrix: np.ndarray | Quantized, dtype: jnp.dtype) -> Any:
    """The values of an (in, out) matrix, stored as `stored_struct` says, for products with rows of
    this type."""
    if isinstance(matrix, Quantized):
        if not _packs(dtype, quantization_of(matrix)):
            return matrix
        return Quantized(pack(matrix.values, dtype), pack_scale(matrix.scale))
    if _packs(dtype):
        return pack(matrix, dtype)
    return matrix.astype(dtype, copy=False)


def restored_values(stored: Any, shape: tuple[int, ...]) -> Any:
    """The (in, out) matrix of this shape that `stored_values` stored, in the stored type."""
    if isinstance(stored, Quantized):
        scale = stored.scale.reshape(-1)[: shape[1]]
        return Quantized(restored_values(stored.values, shape), scale)
    return unpack(stored, shape) if stored.ndim == PACKED_RANK else stored


def is_packed(stored: Any) -> bool:
    """Whether a matrix that `stored_values` stored, in no eight bits, is packed."""
    packed: bool = stored.ndim == PACKED_RANK
    return packed


def packs(dtype: jnp.dtype) -> bool:
    """Whether this platform packs matrices that rows of this type are multiplied with."""
    return _packs(dtype)


def columns(packed: Array, numbers: Int32[Array, " T"], inputs: int) -> Array:
    """Some columns of a packed (in, out) matrix as rows, [T, in]: what a table of embeddings gives
    where it is stored as the matrix that rows are multiplied with."""
    return packed_columns(packed, numbers)[:, :inputs]


def stored_axis(axis: int, dtype: jnp.dtype, quantization: Quantization | None = None) -> int:
    """Along which axis of the stored array the shards of a matrix lie that is split along ``axis``,
    each of them stored by itself."""
    return 1 - axis if _packs(dtype, quantization) else axis


def matmul(
    x: Float[Array, "T I"],
    weights: Array | Quantized,
    outputs: int,
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "T O"]:
    """``x @ weights``, summed in float32.

    Rows are rounded to the type of the weights, or, where these have eight bits, to bfloat16, in
    which every such weight is exact; to float32 where they are packed for it. Scales multiply the
    sums.

    Args:
        x: rows, of any float type.
        weights: an (in, out) matrix as `stored_values` gives it.
        outputs: columns of the matrix.
        implementation: numba is for weights that are packed, the others for those that are not;
            None chooses the fastest one. With numba and mosaic a row has the same bits whatever is
            beside it.
    """
    return _IMPLEMENTATIONS[implementation or _fastest(weights)](x, weights, outputs)


def _product(x: Array, weights: Array, dtype: jnp.dtype) -> Array:
    product: Array = lax.dot_general(
        x.astype(dtype),
        weights.astype(dtype),
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return product


def _reference(x: Array, weights: Array | Quantized, outputs: int) -> Array:
    if not isinstance(weights, Quantized):
        return _product(x, weights, weights.dtype)
    product: Array = _product(x, weights.values, jnp.dtype(jnp.bfloat16)) * weights.scale
    return product


def _numba(x: Array, weights: Array | Quantized, outputs: int) -> Array:
    if not isinstance(weights, Quantized):
        return packed_matmul(x, weights, outputs)
    return packed_matmul(x, weights.values, outputs, weights.scale)


def _mosaic(x: Array, weights: Array | Quantized, outputs: int) -> Array:
    # Pallas takes a fifth of a second to import, which only a GPU needs.
    from fjx.kernels.matmul import mosaic

    return mosaic.matmul(x, weights, outputs)


_IMPLEMENTATIONS = {"reference": _reference, "numba": _numba, "mosaic": _mosaic}


def _fastest(weights: Array | Quantized) -> Implementation:
    """The implementation for what is stored like this."""
    values = weights.values if isinstance(weights, Quantized) else weights
    # Until `mosaic` has run on a GPU, it is not chosen by itself.
    return "numba" if values.ndim == PACKED_RANK else "reference"


def _struct(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _packs(dtype: jnp.dtype, quantization: Quantization | None = None) -> bool:
    return jax.default_backend() == "cpu" and can_pack(dtype, quantization)
