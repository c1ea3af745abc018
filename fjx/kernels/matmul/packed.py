"""Products with packed matrices on a CPU, compiled by Numba and called by XLA in place.

XLA on a CPU packs a matrix anew in each step, which for few rows costs more than the product. Here
a matrix is packed once, when the model is loaded: panels of `COLUMNS` columns, a panel's weights in
the order in which `block_product` reads them. Threads share the panels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Array, Float

from fjx.kernels.matmul.microkernel import COLUMNS, block_product
from fjx.kernels.vectors import HAS_BFLOAT16_PRODUCTS, MOST_ROWS
from fjx.kernels.xla_ffi import argument, dims, only_asks_version, register, result
from fjx.kernels.xla_threads import (
    block_arguments,
    claim,
    finish,
    invite,
    new_block,
    register_task,
    release,
    symbol_address,
    wait,
)

PACKED_RANK = 4


def can_pack(dtype: jnp.dtype) -> bool:
    """Whether this processor multiplies packed matrices of this type."""
    return dtype == jnp.float32 or (dtype == jnp.bfloat16 and HAS_BFLOAT16_PRODUCTS)


def packed_shape(shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[int, int, int, int]:
    """Shape of a packed (in, out) matrix: (panels, terms, columns, values a term)."""
    values = 4 // jnp.dtype(dtype).itemsize
    return -(-shape[1] // COLUMNS), -(-shape[0] // values), COLUMNS, values


def pack(matrix: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
    """Pack an (in, out) matrix; rows and columns that are missing are zeros."""
    panels, terms, columns, values = packed_shape(matrix.shape, dtype)
    packed = np.zeros((panels, terms, columns, values), dtype)
    if dtype == jnp.bfloat16:
        _pack(matrix.astype(np.float32, copy=False).view(np.uint32), packed.view(np.uint16))
    else:
        _pack(matrix.astype(np.float32, copy=False).view(np.uint32), packed.view(np.uint32))
    return packed


def unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The (in, out) matrix of this shape that `pack` packed, in the packed type."""
    panels, terms, columns, values = packed.shape
    matrix = packed.transpose(1, 3, 0, 2).reshape(terms * values, panels * columns)
    return np.ascontiguousarray(matrix[: shape[0], : shape[1]])


def packed_matmul(x: Float[Array, "T I"], packed: Array, outputs: int) -> Float[Array, "T O"]:
    """``x @ w`` in float32, for the packed ``w`` of so many output columns."""
    panels, terms, columns, values = packed.shape
    suffix = "bf16" if packed.dtype == jnp.bfloat16 else "f32"
    task, kernel = (_bf16_task, _bf16_kernel) if suffix == "bf16" else (_f32_task, _f32_kernel)
    register_task(f"fjx_matmul_{suffix}_task", task)
    register(f"fjx_matmul_{suffix}", kernel)
    x = jnp.pad(x.astype(packed.dtype), ((0, 0), (0, terms * values - x.shape[1])))
    product = jax.ffi.ffi_call(
        f"fjx_matmul_{suffix}", jax.ShapeDtypeStruct((x.shape[0], panels * columns), jnp.float32)
    )
    return product(x, packed)[:, :outputs]


@numba.njit(cache=True, nogil=True)
def _round_to_half(bits):
    """Upper half of float32 bits, rounded to nearest even."""
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)


@numba.njit(cache=True, nogil=True)
def _pack(bits, packed):
    values = packed.shape[3]
    inputs, outputs = bits.shape
    for panel in range(packed.shape[0]):
        first = panel * COLUMNS
        for row in range(inputs):
            term, value = row // values, row % values
            for column in range(min(COLUMNS, outputs - first)):
                b = bits[row, first + column]
                packed[panel, term, column, value] = _round_to_half(b) if values == 2 else b


def _block_rows(bfloat16):
    """Multiplies as many rows as one call can, and gives how many."""
    six, four, two, one = (block_product(rows, bfloat16) for rows in (MOST_ROWS, 4, 2, 1))

    @numba.njit(inline="always")
    def multiply(rows, x, panel, out, terms, x_stride, out_stride):
        if rows >= MOST_ROWS:
            six(x, panel, out, terms, x_stride, out_stride)
            return MOST_ROWS
        if rows >= 4:
            four(x, panel, out, terms, x_stride, out_stride)
            return 4
        if rows >= 2:
            two(x, panel, out, terms, x_stride, out_stride)
            return 2
        one(x, panel, out, terms, x_stride, out_stride)
        return 1

    return multiply


_bf16_block, _f32_block = _block_rows(True), _block_rows(False)


# A block's arguments: addresses of x, of the packed matrix and of the result; rows, terms, panels.
_ARGUMENTS = 6


@numba.njit(inline="always")
def _work(block, multiply):
    given = block_arguments(block, _ARGUMENTS)
    rows, terms, panels = given[3], given[4], given[5]
    x_stride, out_stride = 4 * terms, 4 * COLUMNS * panels
    panel = claim(block)
    while panel >= 0:
        weights = given[1] + panel * terms * 4 * COLUMNS
        x, out, left = given[0], given[2] + panel * 4 * COLUMNS, rows
        while left > 0:
            done = multiply(left, x, weights, out, terms, x_stride, out_stride)
            x, out, left = x + done * x_stride, out + done * out_stride, left - done
        finish(block)
        panel = claim(block)


def _bf16_task(block: int) -> None:
    _work(block, _bf16_block)
    release(block)


def _f32_task(block: int) -> None:
    _work(block, _f32_block)
    release(block)


@numba.njit(inline="always")
def _block_of(frame):
    """The block of a call: x and the packed matrix are its arguments."""
    packed = dims(frame, 1)
    block = new_block(packed[0], _ARGUMENTS)
    given = block_arguments(block, _ARGUMENTS)
    given[0] = argument(frame, 0, np.uint8).ctypes.data
    given[1] = argument(frame, 1, np.uint8).ctypes.data
    given[2] = result(frame, 0, np.float32).ctypes.data
    given[3], given[4], given[5] = dims(frame, 0)[0], packed[1], packed[0]
    return block


_bf16_task_address = symbol_address("fjx_matmul_bf16_task")
_f32_task_address = symbol_address("fjx_matmul_f32_task")


def _bf16_kernel(frame: int) -> int:
    if not only_asks_version(frame):
        block = _block_of(frame)
        invite(frame, _bf16_task_address(), block)
        _work(block, _bf16_block)
        wait(block)
    return 0


def _f32_kernel(frame: int) -> int:
    if not only_asks_version(frame):
        block = _block_of(frame)
        invite(frame, _f32_task_address(), block)
        _work(block, _f32_block)
        wait(block)
    return 0
