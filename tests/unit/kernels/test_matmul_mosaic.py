"""The GPU's product with a matrix: its numbers in an interpreter, and that it compiles for CUDA."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.kernels import mosaic
from fjx.kernels.matmul import Quantization, Quantized, dequantized, quantize
from fjx.kernels.matmul import mosaic as kernel
from fjx.kernels.matmul.quantized import STORED_TYPES
from scripts.gpu_checks.models import MODELS
from tests.unit.kernels.gpu_cases import interpreted, one_is_quick

Kind = Quantization | Literal["bfloat16"]
KINDS: list[Kind] = ["bfloat16", "int8", "fp8"]


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def stored(matrix: np.ndarray, kind: Kind) -> np.ndarray | Quantized:
    return matrix.astype(jnp.bfloat16) if kind == "bfloat16" else quantize(matrix, kind)


def widened(matrix: np.ndarray | Quantized) -> np.ndarray:
    wide = dequantized(matrix) if isinstance(matrix, Quantized) else matrix
    return wide.astype(np.float64)


def run(x: np.ndarray, weights: np.ndarray | Quantized, blocks: int = 3) -> np.ndarray:
    outputs = (weights.values if isinstance(weights, Quantized) else weights).shape[1]
    multiply = jax.jit(lambda x, weights: kernel.matmul(x, weights, outputs, blocks=blocks))
    with mosaic.interpreted(detect_races=True):
        return np.asarray(multiply(x, weights))


@interpreted
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, derandomize=True)
@given(
    steps=st.integers(1, 12),
    columns=st.sampled_from([64, 128, 192, 256]),
    rows=st.sampled_from([1, 7, 20, 64, 70]),
)
def test_the_numbers_are_right(kind: Kind, steps: int, columns: int, rows: int) -> None:
    x, matrix = drawn(rows, 64 * steps), stored(drawn(64 * steps, columns), kind)
    wide = np.asarray(jnp.asarray(x, jnp.bfloat16)).astype(np.float64), widened(matrix)
    bound = np.abs(wide[0]) @ np.abs(wide[1])
    assert (np.abs(run(x, matrix) - wide[0] @ wide[1]) <= 1e-6 * bound).all()


@interpreted
@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_the_bits_of_a_row_depend_neither_on_others_nor_on_the_grid(kind: Kind) -> None:
    """Beside others, whatever they are: alone, among few, in a second tile of rows."""
    x, matrix = drawn(70, 576), stored(drawn(576, 192), kind)
    x[1] = np.nan
    together = run(x, matrix)
    for blocks in (1, 5):
        np.testing.assert_array_equal(run(x, matrix, blocks), together)
    for rows in ([0], [69, 0], range(2, 22), range(68, 5, -1)):
        np.testing.assert_array_equal(run(x[list(rows)], matrix), together[list(rows)])


@settings(max_examples=60, derandomize=True)
@given(tiles=st.integers(1, 300), steps=st.integers(1, 120))
def test_parts_are_all_steps_once_and_shares_are_equal(tiles: int, steps: int) -> None:
    parts, first = kernel.cut(tiles, steps)
    done = [
        (int(tile), step)
        for tile, begin, count, _ in zip(*parts, strict=True)
        for step in range(begin, begin + count)
    ]
    assert done == [(tile, step) for tile in range(tiles) for step in range(steps)]
    for tile in range(tiles):
        numbers = parts.number[parts.tile == tile]
        assert numbers.tolist() == list(range(len(numbers)))
    assert (first[0], first[-1]) == (0, len(parts.tile))
    shares = [int(parts.steps[a:b].sum()) for a, b in itertools.pairwise(first)]
    assert len(shares) <= 132
    assert len(set(shares[:-1])) <= 1
    assert 0 < shares[-1] <= shares[0]


@pytest.mark.parametrize("rows", [1, 16, 64, 256])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", one_is_quick(MODELS))
def test_it_compiles_for_cuda(model: str, kind: Kind, rows: int) -> None:
    def shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    for inputs, outputs in MODELS[model].matrices:
        assert kernel.fits(inputs, outputs)

        matrix: Any = shape(inputs, outputs, dtype=jnp.bfloat16)
        if kind != "bfloat16":
            values = shape(inputs, outputs, dtype=STORED_TYPES[kind])
            matrix = Quantized(values, shape(outputs))
        multiply = partial(kernel.matmul, outputs=outputs)
        assert "fjx_matmul" in mosaic.lowers(multiply, shape(rows, inputs), matrix)


@pytest.mark.parametrize("shape", [(96, 128), (128, 100)], ids=str)
def test_what_the_kernel_does_not_take(shape: tuple[int, int]) -> None:
    assert not kernel.fits(*shape)
    matrix = quantize(drawn(*shape), "int8")
    with pytest.raises(ValueError, match=r"multiples of 64, got \(\d+, \d+\); use reference"):
        kernel.matmul(jnp.zeros((1, shape[0])), matrix, shape[1])
