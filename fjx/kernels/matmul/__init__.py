"""Matrix products with a model's weights."""

from fjx.kernels.matmul.api import (
    matmul,
    multiplies_bfloat16,
    restored_values,
    stored_axis,
    stored_struct,
    stored_values,
)

__all__ = [
    "matmul",
    "multiplies_bfloat16",
    "restored_values",
    "stored_axis",
    "stored_struct",
    "stored_values",
]
