"""Matrices of eight bits an entry: how they are made of wider ones."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

Quantization = Literal["int8", "fp8"]
"""int8: whole numbers from -127 to 127. fp8: float8_e4m3fn (Micikevicius et al. 2022,
arXiv:2209.05433) without its subnormal numbers."""

STORED_TYPES: dict[Quantization, np.dtype] = {
    "int8": np.dtype(np.int8),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
_LARGEST: dict[Quantization, float] = {"int8": 127.0, "fp8": 448.0}
_SMALLEST_FP8 = 2.0**-6
"""The least normal number: 1 / 28,672 of the largest."""
_ROWS_AT_ONCE = 256


class Quantized(NamedTuple):
    """A matrix in eight bits an entry: ``values * scale``. Its leaves may be arrays, or shapes or
    partitions of arrays."""

    values: Any
    """(in, out), of one of `STORED_TYPES`, or packed."""
    scale: Any
    """Of each column, (out,) float32, or packed."""


def quantization_of(matrix: Quantized) -> Quantization:
    """How a matrix was quantized."""
    return next(name for name, dtype in STORED_TYPES.items() if dtype == matrix.values.dtype)


def quantize(matrix: np.ndarray, quantization: Quantization) -> Quantized:
    """The nearest matrix of eight bits an entry.

    Symmetric, each column by its largest absolute value, which becomes the type's largest number.
    In fp8, what would be below the least normal number becomes zero: a CPU's kernel then widens
    entries by shifting bits, and no entry changes by more than 1 / 28,672 of its column's largest.

    Args:
        matrix: (in, out), of any float type; finite.
        quantization: the type of the entries.
    """
    largest = _LARGEST[quantization]
    scale = np.zeros(matrix.shape[1], np.float32)
    blocks = range(0, len(matrix), _ROWS_AT_ONCE)
    for begin in blocks:
        block = np.abs(matrix[begin : begin + _ROWS_AT_ONCE]).max(axis=0)
        np.maximum(scale, block.astype(np.float32), out=scale)
    scale /= np.float32(largest)
    scale[scale == 0] = 1
    values = np.empty(matrix.shape, STORED_TYPES[quantization])
    for begin in blocks:
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        scaled = np.clip(matrix[rows].astype(np.float32) / scale, -largest, largest)
        if quantization == "int8":
            np.rint(scaled, out=scaled)
        values[rows] = scaled
        if quantization == "fp8":
            values[rows][np.abs(values[rows].astype(np.float32)) < _SMALLEST_FP8] = 0
    return Quantized(values, scale)


def dequantized(matrix: Quantized) -> np.ndarray:
    """The matrix that is meant, float32."""
    wide: np.ndarray = matrix.values.astype(np.float32) * matrix.scale
    return wide
