"""Gumbel noise inside GPU kernels, out of additions, multiplications and shifts alone.

Mosaic GPU has no ``log1p``, and its fast ``log`` is right to 2**-22 absolutely near 1: too little
where the largest noise comes from. This has the same bits in an interpreter as on a GPU, but for
additions that a compiler fuses with multiplications, and is as exact as `gumbel`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, UInt32

_LOG_2 = (0.693359375, -2.12194440e-4)
"""In two parts: an exponent times the first is exact."""
_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
"""Of (log(1 + f) - f + f**2 / 2) / f**3, the highest power first (S. Moshier, Cephes, logf)."""
_ROOT_OF_HALF = 0x3F3504F3
"""Bits of the square root of one half."""


def noise_of(bits: UInt32[Array, ...]) -> Float[Array, ...]:
    """The noise that `gumbel` makes of the same mixed bits, within 1e-6 of its size or of 1."""
    u = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    u = jnp.minimum(u, jnp.full_like(u, 1 - 2.0**-24))
    exponent, fraction = _split(1 - u)
    # Without the rounding of 1 - u, where that would matter.
    exponential = -_log(exponent, jnp.where(exponent == 0, -u, fraction))
    return -_log(*_split(exponential))


def _split(x: Float[Array, ...]) -> tuple[Int32[Array, ...], Float[Array, ...]]:
    """Exponent e and fraction f of positive normal numbers: x = 2**e * (1 + f), where 1 + f lies
    between the square roots of one half and of two."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    exponent = (bits - _ROOT_OF_HALF) >> 23
    return exponent, lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1


def _log(exponent: Int32[Array, ...], fraction: Float[Array, ...]) -> Float[Array, ...]:
    """Of what `_split` has split."""
    square = fraction * fraction
    sum = jnp.full_like(fraction, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        sum = sum * fraction + coefficient
    e = exponent.astype(jnp.float32)
    small = sum * fraction * square + e * _LOG_2[1] - square * 0.5
    return (small + fraction) + e * _LOG_2[0]
