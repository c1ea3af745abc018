"""Weights of eight bits, made wide when they are read: LLVM text for the innermost loop.

Nothing is rounded: each such weight is a bfloat16, and a float32.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from llvmlite import ir

from fjx.kernels.matmul.quantized import Quantization
from fjx.kernels.vectors import BYTE, INT, INTS, LANES, declared, load

_ALL_BYTES = ir.VectorType(BYTE, 64)
_LANE_BYTES = 16
"""What the processor interleaves bytes within."""


def load_floats_of_bytes(builder: Any, base: Any, offset: Any, quantization: Quantization) -> Any:
    """Read a vector of weights as float32."""
    stored = builder.sext(load(builder, base, offset, ir.VectorType(BYTE, LANES)), INTS)
    if quantization == "int8":
        return builder.sitofp(stored, ir.VectorType(ir.FloatType(), LANES))

    def all_lanes(number: int) -> Any:
        return ir.Constant(INTS, [number] * LANES)

    # A sign, 4 bits of the exponent + 7, and 3 bits behind the point; none is subnormal.
    magnitude = builder.shl(builder.and_(stored, all_lanes(0x7F)), all_lanes(20))
    sign = builder.and_(stored, all_lanes(-(1 << 31)))
    exponent = builder.add(magnitude, all_lanes((127 - 7) << 23))
    is_zero = builder.icmp_signed("==", magnitude, all_lanes(0))
    number = builder.select(is_zero, all_lanes(0), builder.or_(exponent, sign))
    return builder.bitcast(number, ir.VectorType(ir.FloatType(), LANES))


def load_pairs_of_bytes(
    builder: Any, base: Any, offset: Any, quantization: Quantization
) -> tuple[Any, Any]:
    """Read two vectors of pairs of weights as pairs of bfloat16 in 32-bit lanes. Both together hold
    the pairs that lie there, but not in their order: see `in_order`.

    The lower seven bits of a weight are looked up in tables of both bytes of a bfloat16
    (AVX512_VBMI's ``vpermi2b``), and its sign is put before them.
    """
    stored = load(builder, base, offset, _ALL_BYTES)
    magnitude = stored
    if quantization == "int8":
        absolute = declared(builder.module, "llvm.abs.v64i8", _ALL_BYTES, [_ALL_BYTES, _BOOL])
        magnitude = builder.call(absolute, [stored, _BOOL(0)])
    look_up = declared(
        builder.module, "llvm.x86.avx512.vpermi2var.qi.512", _ALL_BYTES, [_ALL_BYTES] * 3
    )
    low, high = (
        builder.call(look_up, [first, magnitude, second]) for first, second in _tables(quantization)
    )
    sign = builder.and_(stored, ir.Constant(_ALL_BYTES, [0x80] * 64))
    high = builder.or_(high, sign)

    def interleaved(half: int) -> Any:
        """The lower or upper halves of all lanes, low and high bytes in turn."""
        chosen = []
        for lane in range(0, 64, _LANE_BYTES):
            for byte in range(lane + 8 * half, lane + 8 * half + 8):
                chosen += [byte, 64 + byte]
        order = ir.Constant(ir.VectorType(INT, 64), chosen)
        return builder.bitcast(builder.shuffle_vector(low, high, order), INTS)

    return interleaved(0), interleaved(1)


def in_order(builder: Any, first: Any, second: Any) -> tuple[Any, Any]:
    """Vectors of sums over what `load_pairs_of_bytes` gave, in the order of the columns."""

    def joined(begin: int) -> Any:
        chosen = []
        for lane in (begin, begin + 4):
            chosen += [*range(lane, lane + 4), *range(LANES + lane, LANES + lane + 4)]
        return builder.shuffle_vector(first, second, ir.Constant(INTS, chosen))

    return joined(0), joined(8)


_BOOL = ir.IntType(1)


def _tables(quantization: Quantization) -> list[tuple[Any, Any]]:
    """Low and high bytes of the bfloat16 that seven bits mean, each in two vectors."""
    bits = np.arange(128, dtype=np.uint8)
    numbers = bits if quantization == "int8" else bits.view(ml_dtypes.float8_e4m3fn)
    bfloats = numbers.astype(ml_dtypes.bfloat16).view(np.uint8).reshape(128, 2)
    vectors = bfloats.T.reshape(2, 2, 64).tolist()
    return [
        (ir.Constant(_ALL_BYTES, first), ir.Constant(_ALL_BYTES, second))
        for first, second in vectors
    ]
