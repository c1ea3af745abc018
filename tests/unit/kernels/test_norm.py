"""Norms against float64, and the independence of rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from fjx.kernels.norm import layer_norm, rms_norm

EPS = 1e-5
WIDTHS = [8, 64, 80, 577]


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@jax.jit
def rms(x: Array) -> Array:
    return rms_norm(x, jnp.asarray(drawn(x.shape[-1])), EPS)


@jax.jit
def layer(x: Array) -> Array:
    return layer_norm(x, jnp.asarray(drawn(x.shape[-1])), jnp.asarray(drawn(x.shape[-1]) + 1), EPS)


@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm_is_exact(width: int) -> None:
    x = 5 * drawn(3, 2, width)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + EPS) * drawn(width)
    np.testing.assert_allclose(rms(x), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm_is_exact_far_from_zero(width: int) -> None:
    x = drawn(5, width) + 30
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * drawn(width)
    np.testing.assert_allclose(layer(x), expected + drawn(width) + 1, rtol=1e-4, atol=3e-5)


def test_a_row_of_zeros_stays_zero() -> None:
    np.testing.assert_array_equal(rms(np.zeros((2, 64), np.float32)), 0)


@pytest.mark.parametrize("norm", [rms, layer])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_bits_of_a_row_do_not_depend_on_the_number_of_rows(
    norm: Callable[[np.ndarray], Array], width: int
) -> None:
    x = drawn(33, width)
    many = np.asarray(norm(x))
    for count in (1, 2, 5, 16):
        np.testing.assert_array_equal(norm(x[:count]), many[:count])
    x[1:] = np.nan
    np.testing.assert_array_equal(norm(x)[0], many[0])
