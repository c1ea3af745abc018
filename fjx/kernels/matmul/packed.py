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
from jaxtyping import Array, Float, Int32

from fjx.kernels.host_memory import zeros
from fjx.kernels.matmul.microkernel import COLUMNS, block_product
from fjx.kernels.matmul.quantized import Quantization, Quantized, quantization_of
from fjx.kernels.vectors import HAS_BFLOAT16_PRODUCTS, HAS_BYTE_TABLES, MAX_ROWS
from fjx.kernels.xla_ffi import (
    argument,
    arguments,
    dims,
    element_type,
    only_asks_version,
    register,
    result,
    words,
)
from fjx.kernels.xla_threads import (
    TaskTable,
    block_arguments,
    claim,
    do_share,
    finish,
    invite,
    new_block,
    release,
    symbol_address,
    wait,
)

PACKED_RANK = 4

_S8, _BF16, _F8E4M3FN = 2, 16, 20
"""Types of a call's arguments, from ``xla/ffi/api/c_api.h``."""


def can_pack(dtype: jnp.dtype, quantization: Quantization | None = None) -> bool:
    """Whether this processor multiplies rows of this type with packed matrices."""
    has_all = HAS_BFLOAT16_PRODUCTS and (quantization is None or HAS_BYTE_TABLES)
    return dtype == jnp.float32 or (dtype == jnp.bfloat16 and has_all)


def packed_shape(shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[int, int, int, int]:
    """Shape of a packed (in, out) matrix that rows of this type are multiplied with: (panels,
    terms, columns, values a term)."""
    values = 4 // jnp.dtype(dtype).itemsize
    return -(-shape[1] // COLUMNS), -(-shape[0] // values), COLUMNS, values


def pack(matrix: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
    """Pack an (in, out) matrix; rows and columns that are missing are zeros.

    Args:
        matrix: of any float type, which is packed in the type of the rows; or of eight bits an
            entry, whose type stays.
        dtype: of the rows that it is multiplied with.
    """
    stored = matrix.dtype if matrix.dtype.itemsize == 1 else dtype
    packed = zeros(packed_shape(matrix.shape, dtype), stored)
    if matrix.dtype.itemsize == 1:
        _pack(matrix.view(np.uint8), packed.view(np.uint8))
        return packed
    bits = matrix.astype(np.float32, copy=False).view(np.uint32)
    _pack(bits, packed.view(np.uint16 if dtype == jnp.bfloat16 else np.uint32))
    return packed


def pack_scale(scale: np.ndarray) -> np.ndarray:
    """Scales of columns, by panel; those that are missing are zeros."""
    panels = -(-len(scale) // COLUMNS)
    return np.pad(scale, (0, panels * COLUMNS - len(scale))).reshape(panels, COLUMNS)


def unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The (in, out) matrix of this shape that `pack` packed, in the packed type."""
    panels, terms, columns, values = packed.shape
    matrix = packed.transpose(1, 3, 0, 2).reshape(terms * values, panels * columns)
    return np.ascontiguousarray(matrix[: shape[0], : shape[1]])


def packed_columns(packed: Array, columns: Int32[Array, " T"]) -> Array:
    """Some columns of a packed matrix as rows, [T, terms * values]: with those that padding added
    behind a column's end."""
    picked = packed[columns // COLUMNS, :, columns % COLUMNS]
    return picked.reshape(len(columns), -1)


def packed_matmul(
    x: Float[Array, "T I"], packed: Array, outputs: int, scale: Array | None = None
) -> Float[Array, "T O"]:
    """``x @ w`` in float32, for a packed ``w`` of ``outputs`` columns; ``scale``: the
    columns' scales, by panel, where the entries of ``w`` have eight bits."""
    panels, terms, columns, values = packed.shape
    of_rows = "bf16" if values == 2 else "f32"
    of_weights = of_rows if scale is None else quantization_of(Quantized(packed, scale))
    number, task = _TASKS[of_rows, of_weights]
    _TABLE.register(number, f"fjx_matmul_{of_rows}_{of_weights}", task)
    register("fjx_matmul", _kernel)
    rows = jnp.pad(
        x.astype(jnp.bfloat16 if values == 2 else jnp.float32),
        ((0, 0), (0, terms * values - x.shape[1])),
    )
    product = jax.ffi.ffi_call(
        "fjx_matmul", jax.ShapeDtypeStruct((x.shape[0], panels * columns), jnp.float32)
    )
    scales = () if scale is None else (scale,)
    return product(rows, packed, *scales)[:, :outputs]


@numba.njit(cache=True, nogil=True)
def _round_to_half(bits):
    """Upper half of float32 bits, rounded to nearest even; NaN stays NaN."""
    if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
        return (bits >> np.uint32(16)) | np.uint32(0x40)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)


@numba.njit(cache=True, nogil=True)
def _pack(bits, packed):
    values = packed.shape[3]
    rounds = bits.itemsize == 4 and packed.itemsize == 2
    inputs, outputs = bits.shape
    for panel in range(packed.shape[0]):
        first = panel * COLUMNS
        for row in range(inputs):
            term, value = row // values, row % values
            for column in range(min(COLUMNS, outputs - first)):
                b = bits[row, first + column]
                packed[panel, term, column, value] = _round_to_half(b) if rounds else b


def _block_rows(bfloat16, quantization):
    """Multiplies as many rows as one call can, and gives how many."""
    # Making weights wide takes registers, too.
    most = MAX_ROWS if quantization is None else 4
    many, four, two, one = (block_product(rows, bfloat16, quantization) for rows in (most, 4, 2, 1))

    @numba.njit(inline="always")
    def multiply(rows, x, panel, scale, out, terms, x_stride, out_stride):
        if rows >= most:
            many(x, panel, scale, out, terms, x_stride, out_stride)
            return most
        if rows >= 4:
            four(x, panel, scale, out, terms, x_stride, out_stride)
            return 4
        if rows >= 2:
            two(x, panel, scale, out, terms, x_stride, out_stride)
            return 2
        one(x, panel, scale, out, terms, x_stride, out_stride)
        return 1

    return multiply


_bf16, _f32, _f32_int8, _f32_fp8 = (
    _block_rows(bfloat16, quantization)
    for bfloat16, quantization in ((True, None), (False, None), (False, "int8"), (False, "fp8"))
)
# Where the processor lacks the instructions, nothing is packed for them; see `can_pack`.
_bf16_int8, _bf16_fp8 = (
    _block_rows(HAS_BYTE_TABLES, quantization) for quantization in ("int8", "fp8")
)


# A block's arguments: addresses of x, of the packed matrix, of its scales and of the result; rows,
# terms, panels.
_ARGUMENTS = 7


@numba.njit(inline="always")
def _share(block, multiply, weight_bytes):
    """This thread's share of the panels, with ``weight_bytes`` bytes for each column of a term."""
    given = block_arguments(block, _ARGUMENTS)
    rows, terms, panels = given[4], given[5], given[6]
    x_stride, out_stride = 4 * terms, 4 * COLUMNS * panels
    panel = claim(block)
    while panel >= 0:
        weights = given[1] + panel * terms * weight_bytes * COLUMNS
        scale, x, out = given[2] + panel * 4 * COLUMNS, given[0], given[3] + panel * 4 * COLUMNS
        left = rows
        while left > 0:
            done = multiply(left, x, weights, scale, out, terms, x_stride, out_stride)
            x, out, left = x + done * x_stride, out + done * out_stride, left - done
        finish(block)
        panel = claim(block)


def _bf16_task(block: int) -> None:
    _share(block, _bf16, 4)
    release(block)


def _bf16_int8_task(block: int) -> None:
    _share(block, _bf16_int8, 2)
    release(block)


def _bf16_fp8_task(block: int) -> None:
    _share(block, _bf16_fp8, 2)
    release(block)


def _f32_task(block: int) -> None:
    _share(block, _f32, 4)
    release(block)


def _f32_int8_task(block: int) -> None:
    _share(block, _f32_int8, 1)
    release(block)


def _f32_fp8_task(block: int) -> None:
    _share(block, _f32_fp8, 1)
    release(block)


_TASKS = {
    ("bf16", "bf16"): (0, _bf16_task),
    ("bf16", "int8"): (1, _bf16_int8_task),
    ("bf16", "fp8"): (2, _bf16_fp8_task),
    ("f32", "f32"): (3, _f32_task),
    ("f32", "int8"): (4, _f32_int8_task),
    ("f32", "fp8"): (5, _f32_fp8_task),
}
"""By the types of x and of the matrix."""
_TABLE = TaskTable("fjx_matmul_tasks", len(_TASKS))
_table_address = symbol_address("fjx_matmul_tasks")


@numba.njit(inline="always")
def _task_of(frame):
    """The address of the task for a call's types."""
    number = 0 if element_type(frame, 0) == _BF16 else 3
    if element_type(frame, 1) == _S8:
        number += 1
    elif element_type(frame, 1) == _F8E4M3FN:
        number += 2
    return words(_table_address(), 6)[number]


@numba.njit(inline="always")
def _block_of(frame):
    """The block of a call: x and the packed matrix are its arguments, and its scales if any."""
    packed = dims(frame, 1)
    block = new_block(packed[0], _ARGUMENTS)
    given = block_arguments(block, _ARGUMENTS)
    given[0] = argument(frame, 0, np.uint8).ctypes.data
    given[1] = argument(frame, 1, np.uint8).ctypes.data
    given[2] = argument(frame, 2, np.uint8).ctypes.data if arguments(frame) == 3 else 0
    given[3] = result(frame, 0, np.float32).ctypes.data
    given[4], given[5], given[6] = dims(frame, 0)[0], packed[1], packed[0]
    return block


def _kernel(frame: int) -> int:
    if not only_asks_version(frame):
        block, task = _block_of(frame), _task_of(frame)
        invite(frame, task, block)
        do_share(task, block)
        wait(block)
    return 0
