"""Matrices of eight bits an entry: how near they are, and products with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fjx.kernels.matmul.api as api
from fjx.kernels.matmul import (
    Quantization,
    Quantized,
    dequantized,
    matmul,
    quantize,
    stored_struct,
    stored_values,
)

KINDS: list[Quantization] = ["int8", "fp8"]
BFLOAT16, FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
shapes = st.tuples(st.integers(1, 300), st.integers(1, 200))

multiply = jax.jit(matmul, static_argnums=2)


def drawn(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def stored(matrix: Quantized, dtype: jnp.dtype) -> Quantized:
    arrays: Quantized = jax.tree.map(jnp.asarray, stored_values(matrix, dtype))
    return arrays


@pytest.mark.parametrize("given_as", [np.float32, np.float16, ml_dtypes.bfloat16])
@settings(derandomize=True, max_examples=40)
@given(shape=shapes, seed=st.integers(0, 99))
def test_each_entry_is_as_near_as_its_type_allows(
    given_as: type, shape: tuple[int, int], seed: int
) -> None:
    columns = np.exp(3 * drawn(shape[1:], seed))  # some are far larger than others
    matrix = (drawn(shape, seed) * columns).astype(given_as)
    wide = matrix.astype(np.float64)
    largest = np.abs(wide).max(axis=0)
    off = np.abs(dequantized(quantize(matrix, "int8")) - wide)
    assert (off <= largest / 127 / 2 * (1 + 1e-5)).all()
    off = np.abs(dequantized(quantize(matrix, "fp8")) - wide)
    # Half of the last of three bits, or less than the least normal number.
    assert (off <= np.maximum(np.abs(wide) / 16, largest / 28_672) * (1 + 1e-5)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_of_a_column_stays_and_zeros_stay(kind: Quantization) -> None:
    matrix = drawn((40, 8))
    matrix[:, 3] = 0
    matrix[5:] *= 0.5
    matrix[0] = 4
    matrix[0, 3] = 0
    restored = dequantized(quantize(matrix, kind))
    np.testing.assert_allclose(restored[0], matrix[0], rtol=1e-6)
    assert not restored[:, 3].any()


def test_fp8_holds_no_subnormal_numbers() -> None:
    matrix = np.logspace(0, -9, 500, dtype=np.float32)[:, None]
    values = np.abs(quantize(matrix, "fp8").values.astype(np.float32))
    assert values.max() == 448
    assert values[values > 0].min() == 2.0**-6
    assert (values == 0).any()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@settings(derandomize=True, max_examples=40)
@given(shape=shapes, rows=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_product_is_that_of_the_matrix_that_is_meant(
    dtype: jnp.dtype, kind: Quantization, shape: tuple[int, int], rows: int, seed: int
) -> None:
    matrix, x = quantize(drawn(shape, seed), kind), drawn((rows, shape[0]), seed + 1)
    product = multiply(x, stored(matrix, dtype), shape[1])
    assert product.dtype == jnp.float32
    wide = x.astype(dtype).astype(np.float64), dequantized(matrix).astype(np.float64)
    bound = np.abs(wide[0]) @ np.abs(wide[1])  # of which each sum may lose a share
    assert (np.abs(product - wide[0] @ wide[1]) <= 1e-6 * bound + 1e-30).all()


def every_code(kind: Quantization) -> np.ndarray:
    """All values of the type that matrices hold, as one column."""
    if kind == "int8":
        return np.arange(-127, 128, dtype=np.int8)[:, None]
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    wide = np.abs(values.astype(np.float32))
    return values[(wide == 0) | ((wide >= 2.0**-6) & np.isfinite(wide))][:, None]


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_the_type_is_made_wide_without_rounding(
    kind: Quantization, dtype: jnp.dtype
) -> None:
    """Times an identity, in every column of a panel, whose order a processor may turn round."""
    values = every_code(kind)
    count = len(values)
    matrix = np.concatenate([np.roll(values, column, axis=0) for column in range(130)], axis=1)
    scale = np.exp2(np.arange(130) % 7).astype(np.float32)
    identity = np.eye(count, dtype=np.float32)
    product = multiply(identity, stored(Quantized(matrix, scale), dtype), 130)
    np.testing.assert_array_equal(product, matrix.astype(np.float32) * scale)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_a_row_do_not_depend_on_the_number_of_rows(
    dtype: jnp.dtype, kind: Quantization
) -> None:
    weights = stored(quantize(drawn((576, 192)), kind), dtype)
    if weights.values.ndim == 2:
        pytest.skip(f"this processor has no product of {kind} and {dtype}; XLA's is used")
    x = drawn((67, 576))
    many = np.asarray(multiply(x, weights, 192))
    for rows in (1, 2, 3, 4, 6, 7, 32, 64):
        np.testing.assert_array_equal(multiply(x[-rows:], weights, 192), many[-rows:])


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_has_the_promised_shapes(
    monkeypatch: pytest.MonkeyPatch, kind: Quantization, packed: bool
) -> None:
    if not packed:
        monkeypatch.setattr(api, "_packs", lambda *given: False)
    values = stored_values(quantize(drawn((31, 100)), kind), BFLOAT16)
    structs = stored_struct((31, 100), BFLOAT16, kind)
    for array, struct in zip(values[:2], structs[:2], strict=True):
        assert (array.shape, array.dtype) == (struct.shape, struct.dtype)
    assert values.values.itemsize == 1
    assert values.scale.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_agrees_with_the_packed_product(
    monkeypatch: pytest.MonkeyPatch, kind: Quantization
) -> None:
    matrix, x = quantize(drawn((96, 70)), kind), drawn((5, 96))
    packed = multiply(x, stored(matrix, BFLOAT16), 70)
    monkeypatch.setattr(api, "_packs", lambda *given: False)
    plain = stored(matrix, BFLOAT16)
    assert plain.values.shape == (96, 70)
    reference = matmul(x, plain, 70, implementation="reference")
    np.testing.assert_allclose(reference, packed, rtol=1e-5, atol=1e-4)
