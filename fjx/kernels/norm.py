"""Norms of rows, each a function of its row alone.

XLA on a CPU sums a row in an order that depends on how many rows there are. A step's size must not
show in a token, so there the sum is taken in Numba, sixteen partial sums a row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from fjx.kernels.xla_ffi import argument, dims, only_asks_version, register, result

_LANES = 16
_FAST = {"contract", "nsz"}


def rms_norm(
    x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis, float32 (Zhang and Sennrich
    2019)."""
    if jax.default_backend() == "cpu":
        return _call_cpu_kernel(x, weight, jnp.zeros_like(weight), eps, centre=False)
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def layer_norm(
    x: Float[Array, "... D"], weight: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, float32 (Ba et al. 2016)."""
    if jax.default_backend() == "cpu":
        return _call_cpu_kernel(x, weight, bias, eps, centre=True)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * lax.rsqrt(variance + eps) * weight + bias


def _call_cpu_kernel(x: Array, weight: Array, bias: Array, eps: float, centre: bool) -> Array:
    register("fjx_norm", _norm_kernel)
    numbers = jnp.array([eps, float(centre)], jnp.float32)
    call = jax.ffi.ffi_call("fjx_norm", jax.ShapeDtypeStruct(x.shape, jnp.float32))
    normed: Array = call(x, weight, bias, numbers)
    return normed


@numba.njit(fastmath=_FAST, inline="always")
def _sum_of(row, shift, square, lanes):
    """Sum of (row - shift), or of its squares: lane by lane, then the lanes in order."""
    D = len(row)
    whole = D // _LANES * _LANES
    for lane in range(_LANES):
        lanes[lane] = np.float32(0.0)
    for x in range(0, whole, _LANES):
        for lane in range(_LANES):
            value = row[x + lane] - shift
            lanes[lane] += value * value if square else value
    total = np.float32(0.0)
    for lane in range(_LANES):
        total += lanes[lane]
    for x in range(whole, D):
        value = row[x] - shift
        total += value * value if square else value
    return total


@numba.njit(fastmath=_FAST)
def _norm(x, weight, bias, eps, centre, out):
    rows, D = x.shape
    lanes = np.empty(_LANES, np.float32)
    for r in range(rows):
        mean = np.float32(0.0)
        if centre:
            mean = _sum_of(x[r], mean, False, lanes) / np.float32(D)
        square = _sum_of(x[r], mean, True, lanes) / np.float32(D)
        scale = np.float32(1.0) / np.sqrt(square + eps)
        for i in range(D):
            out[r, i] = (x[r, i] - mean) * scale * weight[i] + bias[i]


def _norm_kernel(frame: int) -> int:
    if not only_asks_version(frame):
        D = dims(frame, 1)[0]
        x = argument(frame, 0, np.float32)
        numbers = argument(frame, 3, np.float32)
        rows = len(x) // D
        _norm(
            x.reshape((rows, D)),
            argument(frame, 1, np.float32),
            argument(frame, 2, np.float32),
            numbers[0],
            numbers[1] != 0,
            result(frame, 0, np.float32).reshape((rows, D)),
        )
    return 0
