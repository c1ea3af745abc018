"""Matrix products with a model's weights."""

from fjx.kernels.matmul.api import (
    can_multiply_quantized,
    matmul,
    multiplies_bfloat16,
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
    "dequantized",
    "matmul",
    "multiplies_bfloat16",
    "quantize",
    "restored_values",
    "stored_axis",
    "stored_struct",
    "stored_values",
]
