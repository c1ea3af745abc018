"""Products with stored weights against float64, and the independence of rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from fjx.kernels.matmul import matmul, stored_struct, stored_values
from fjx.kernels.matmul.packed import can_pack, pack, packed_shape

SHAPES = [(64, 64), (576, 192), (7, 33), (31, 100), (1, 1)]  # some that no panel and no pair fits
DTYPES = [jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)]

multiply = jax.jit(matmul, static_argnums=2)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def stored(shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    return jnp.asarray(stored_values(drawn(*shape), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 33])
def test_product_is_exact(dtype: jnp.dtype, shape: tuple[int, int], rows: int) -> None:
    x = drawn(rows, shape[0])
    wide = [a.astype(dtype).astype(np.float64) for a in (x, drawn(*shape))]
    product = multiply(x, stored(shape, dtype), shape[1])
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, wide[0] @ wide[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_of_a_row_do_not_depend_on_the_number_of_rows(dtype: jnp.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this processor has no product of {dtype} matrices; XLA's is used")
    x, weights = drawn(67, 576), stored((576, 192), dtype)
    many = np.asarray(multiply(x, weights, 192))
    for rows in (1, 2, 3, 4, 6, 7, 32, 64):
        np.testing.assert_array_equal(multiply(x[-rows:], weights, 192), many[-rows:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stored_values_have_the_promised_shape(dtype: jnp.dtype, shape: tuple[int, int]) -> None:
    values = stored_values(drawn(*shape), dtype)
    assert (values.shape, values.dtype) == (
        stored_struct(shape, dtype).shape,
        stored_struct(shape, dtype).dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packing_keeps_every_weight(dtype: jnp.dtype) -> None:
    matrix = drawn(31, 100)
    packed = pack(matrix, dtype)
    panels, terms, columns, values = packed_shape(matrix.shape, dtype)
    unpacked = packed.transpose(1, 3, 0, 2).reshape(terms * values, panels * columns)
    np.testing.assert_array_equal(unpacked[:31, :100], matrix.astype(dtype))
    assert not unpacked[31:].any()
    assert not unpacked[:, 100:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_at_the_same_time_do_not_disturb_each_other(dtype: jnp.dtype) -> None:
    """Parts of many calls are in the pool at once; each call must get its own."""
    inputs = [(drawn(rows, 576), stored((576, 192 + rows), dtype)) for rows in range(1, 9)]
    expected = [np.asarray(multiply(x, w, 192 + len(x))) for x, w in inputs]

    def repeat(index: int) -> None:
        x, weights = inputs[index % len(inputs)]
        for _ in range(50):
            got = multiply(x, weights, 192 + len(x))
            np.testing.assert_array_equal(got, expected[index % len(inputs)])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(repeat, range(16)))
