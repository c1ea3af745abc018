"""Matrix products with a model's weights."""

from fjx.kernels.matmul.api import (
    can_multiply_quantized,
    columns,
    is_packed,
    matmul,
    multiplies_bfloat16,
    packs,
    restored_values,
    stored_axis,
    stored_struct,
    stored_values,
)
from fjx.kernels.matmul.quantized import Quantization, Quantized, dequantized, quantize

__all__ = [
    "Quantization",
    "Quantized",
    "can_multiply_quantized",
    "columns",
    "dequantized",
    "is_packed",
    "matmul",
    "multiplies_bfloat16",
    "packs",
    "quantize",
    "restored_values",
    "stored_axis",
    "stored_struct",
    "stored_values",
]
