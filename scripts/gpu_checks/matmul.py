"""Products with matrices of eight bits an entry: numbers, bits, and time beside their bytes'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fjx.kernels import mosaic
from fjx.kernels.matmul import Quantization, Quantized, dequantized, matmul, quantize
from fjx.kernels.matmul.mosaic import matmul as mosaic_matmul
from fjx.kernels.matmul.quantized import STORED_TYPES

from .models import MODELS
from .timing import copy_bandwidth, seconds_of

ROWS = (1, 8, 16, 64)
Kind = Quantization | Literal["bfloat16"]
KINDS: tuple[Kind, ...] = ("bfloat16", "int8", "fp8")
LEAST_BYTES = 400 * 2**20
"""Of the layers that are multiplied one after the other, so that none is still in the cache."""


def lowered() -> Iterator[tuple[str, Callable[[], object]]]:
    """What compiles for CUDA without a GPU."""
    for model, sizes in MODELS.items():
        for kind in KINDS:
            for rows in (*ROWS, 512):
                name = f"{model}, {kind}, {rows} rows"
                yield name, partial(_lower_all, sizes.matrices, kind, rows)


def checks() -> dict[str, Callable[[], Any]]:
    """What a GPU is to say."""
    return {"numbers": numbers, "times": times}


def numbers() -> dict[str, Any]:
    """The largest error against float64, as a share of the sum of absolute terms; and whether a row
    has the same bits beside any number of rows and in any grid."""
    found: dict[str, Any] = {}
    draw = np.random.default_rng(0)
    for kind in KINDS:
        for inputs, outputs in MODELS["SmolLM2 135M"].matrices:
            matrix = _stored(draw.standard_normal((inputs, outputs), np.float32), kind)
            x = draw.standard_normal((200, inputs), np.float32)
            wide = np.asarray(jnp.asarray(x, jnp.bfloat16)).astype(np.float64), _widened(matrix)
            weights = jax.tree.map(jnp.asarray, matrix)
            run = jax.jit(mosaic_matmul, static_argnames=("outputs", "blocks"))
            product = np.asarray(run(x, weights, outputs=outputs))
            error = np.abs(product - wide[0] @ wide[1]) / (np.abs(wide[0]) @ np.abs(wide[1]))
            same = all(
                np.array_equal(run(x[begin:], weights, outputs, blocks=blocks), product[begin:])
                for begin in (0, 100, 137, 150, 190, 199)
                for blocks in (132, 66, 7)
            )
            found[f"{kind}, {inputs} x {outputs}"] = {
                "largest_error": float(error.max()),
                "same_bits": same,
            }
            if error.max() > 1e-6 or not same:
                raise AssertionError(found)
    return found


def times() -> list[dict[str, Any]]:
    """Microseconds of each matrix of an 8B model beside the least that its bytes need at the
    bandwidth of a copy, by XLA and by the kernel."""
    bandwidth = 1e12 * copy_bandwidth()["terabytes_per_second"]
    return [
        _of_matrix(*shape, rows, bandwidth)
        for shape in tqdm(MODELS["Llama 3.1 8B"].matrices, unit="matrix")
        for rows in (*ROWS, 512)
    ]


def _of_matrix(inputs: int, outputs: int, rows: int, bandwidth: float) -> dict[str, Any]:
    layers = -(-LEAST_BYTES // (inputs * outputs))
    x = jnp.ones((rows, inputs), jnp.float32)
    found: dict[str, Any] = {"in": inputs, "out": outputs, "rows": rows}
    for kind in KINDS:
        dtype = jnp.bfloat16 if kind == "bfloat16" else STORED_TYPES[kind]
        weights: list[Any] = [_drawn((inputs, outputs), dtype, i) for i in range(layers)]
        if kind != "bfloat16":
            scale = jnp.ones(outputs, jnp.float32)
            weights = [Quantized(values, scale) for values in weights]
        for name, implementation in (("XLA", "reference"), ("kernel", "mosaic")):
            run = jax.jit(partial(_all_layers, outputs=outputs, implementation=implementation))
            seconds = seconds_of(run, (x, weights)) / layers
            least = inputs * outputs * jnp.dtype(dtype).itemsize / bandwidth
            found[f"{kind}, {name}"] = {
                "microseconds": 1e6 * seconds,
                "least_microseconds": 1e6 * least,
                "share_of_the_limit": least / seconds,
            }
    return found


def _stored(matrix: np.ndarray, kind: Kind) -> Any:
    return matrix.astype(jnp.bfloat16) if kind == "bfloat16" else quantize(matrix, kind)


def _widened(matrix: Any) -> np.ndarray:
    wide = dequantized(matrix) if isinstance(matrix, Quantized) else matrix
    return np.asarray(wide, np.float64)


def _drawn(shape: tuple[int, ...], dtype: Any, seed: int) -> Any:
    small = jax.random.randint(jax.random.key(seed), shape, -100, 100, jnp.int8)
    return small.astype(dtype)


def _all_layers(x: Any, weights: list[Any], outputs: int, implementation: Any) -> Any:
    """The products with all layers, each waiting for the one before."""
    for each in weights:
        y = matmul(x, each, outputs, implementation=implementation)
        x = x + 1e-30 * y[:, :1]
    return x


def _lower_all(matrices: Any, kind: Kind, rows: int) -> None:
    for inputs, outputs in matrices:
        run = partial(matmul, outputs=outputs, implementation="mosaic")
        matrix: Any = jax.ShapeDtypeStruct((inputs, outputs), jnp.bfloat16)
        if kind != "bfloat16":
            values = jax.ShapeDtypeStruct((inputs, outputs), STORED_TYPES[kind])
            matrix = Quantized(values, jax.ShapeDtypeStruct((outputs,), jnp.float32))
        mosaic.lowers(run, jax.ShapeDtypeStruct((rows, inputs), jnp.float32), matrix)
