"""Kernels with derivatives, for the modules of `fjx.models` while they are traced in training.

The modules' own kernels are foreign calls on a CPU, which JAX cannot differentiate. What is
computed is the same; a test compares both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from fjx.kernels.attention.rotation import Rotation, rotate
from fjx.kernels.ragged import RaggedRows
from fjx.models import layers

_MASKED = -1e30

KeysValues = tuple[tuple[Array, Array], ...]
"""Keys and values of each pass so far, (T, K, D): those of the true residual stream first."""


@contextmanager
def differentiable(attend: Callable[..., Any]) -> Iterator[None]:
    """While this lasts, modules that this thread traces use kernels with derivatives, and
    ``attend`` for `fjx.kernels.attention.append_and_attend`."""
    owner = threading.get_ident()
    plain: dict[str, Callable[..., Any]] = {
        "matmul": _matmul,
        "rms_norm": _rms_norm,
        "layer_norm": _layer_norm,
        "append_and_attend": attend,
    }
    kept = {name: getattr(layers, name) for name in plain}

    def choose(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            mine = threading.get_ident() == owner
            return (plain if mine else kept)[name](*arguments, **keywords)

        return call

    for name in plain:
        setattr(layers, name, choose(name))
    try:
        yield
    finally:
        for name, kernel in kept.items():
            setattr(layers, name, kernel)


def attend_windows(length: int) -> Callable[..., tuple[Array, KeysValues]]:
    """Attention over rows that form windows of so many positions, in place of pages.

    In pass s of an unrolled draft, row t sees the keys of the true residual stream up to row t - s,
    and those of passes 1 to s at the rows t - s + 1 to t: its own estimates (the training-time test
    of EAGLE-3, Li et al. 2025, arXiv:2503.01840). Rows see their own request only.
    """

    def attend(
        q: Float[Array, "T H D"],
        k: Float[Array, "T K D"],
        v: Float[Array, "T K D"],
        earlier: KeysValues,
        layer: int | Int32[Array, ""],
        rows: RaggedRows,
        *,
        rotation: Rotation | None = None,
        scale: float,
        window: Int32[Array, ""] | None = None,
        soft_cap: float | None = None,
    ) -> tuple[Float[Array, "T H D"], KeysValues]:
        q, k = rotate(q, rotation), rotate(k, rotation)
        passes = (*earlier, (k, v))
        T, H, D = q.shape
        K = k.shape[1]
        back = len(earlier)
        q = (q * scale).reshape(-1, length, K, H // K, D)
        request, position = (each.reshape(-1, length) for each in (rows.request_of, rows.positions))

        def seen(keys: Array, mine: Array, at: Array, of: Array) -> Array:
            """Logits, capped and masked. ``at``: positions of the keys, ``of``: their requests."""
            logits = keys if soft_cap is None else soft_cap * jnp.tanh(keys / soft_cap)
            mask = mine & (of == request[..., None]) & (of >= 0)
            if window is not None:
                mask &= (window <= 0) | (position[..., None] - at < window)
            return jnp.where(mask[:, None, None], logits, _MASKED)

        true_k, true_v = (each.reshape(-1, length, K, D) for each in passes[0])
        order = jnp.arange(length)
        past = order[:, None] - order >= back
        logits = jnp.einsum("bikgd,bjkd->bkgij", q, true_k)
        parts = [seen(logits, past, position[:, None], request[:, None])]
        values = []
        for number in range(1, back + 1):
            shift = back - number
            own_k, own_v = (_shifted(each, length, shift) for each in passes[number])
            of, at = (_shifted(each.reshape(-1), length, shift) for each in (request, position))
            inside = (order >= shift)[:, None]
            logits = jnp.einsum("bikgd,bikd->bkgi", q, own_k)[..., None]
            parts.append(seen(logits, inside, at[..., None], of[..., None]))
            values.append(own_v)
        weights = jax.nn.softmax(jnp.concatenate(parts, axis=-1), axis=-1)
        out = jnp.einsum("bkgij,bjkd->bikgd", weights[..., :length], true_v)
        for number, own_v in enumerate(values):
            out += jnp.einsum("bkgi,bikd->bikgd", weights[..., length + number], own_v)
        return out.reshape(T, H, D), passes

    return attend


def shifted_rows(rows: Float[Array, "T ..."], length: int, shift: int) -> Float[Array, "T ..."]:
    """Row i becomes row i - ``shift`` of its window, the first ones zero."""
    return _shifted(rows, length, shift).reshape(rows.shape)


def _shifted(rows: Array, length: int, shift: int) -> Array:
    windows = rows.reshape(-1, length, *rows.shape[1:])
    if shift == 0:
        return windows
    before = [(0, 0), (shift, 0), *[(0, 0)] * (windows.ndim - 2)]
    return jnp.pad(windows, before)[:, :length]


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def _layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * lax.rsqrt(variance + eps) * weight + bias


def _matmul(x: Array, weights: Array, outputs: int) -> Array:
    return product(x, weights)


@jax.custom_vjp
def product(x: Float[Array, "T I"], weights: Float[Array, "I O"]) -> Float[Array, "T O"]:
    """``x @ weights`` in the type of the weights, summed in float32; so is its derivative."""
    return _dot(x, weights, ((1,), (0,)))


def _dot(x: Array, y: Array, contracted: tuple[tuple[int], tuple[int]]) -> Array:
    dot: Array = lax.dot_general(
        x.astype(y.dtype), y, (contracted, ((), ())), preferred_element_type=jnp.float32
    )
    return dot


def _product_forward(x: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
    rounded = x.astype(weights.dtype)
    return product(rounded, weights), (rounded, weights)


def _product_backward(saved: tuple[Array, Array], change: Array) -> tuple[Array, Array]:
    x, weights = saved
    # On a CPU this product is faster in float32: bfloat16 does not like the contracted rows.
    of_weights = _dot(x.astype(jnp.float32), change, ((0,), (0,)))
    return _dot(change, weights, ((1,), (1,))), of_weights.astype(weights.dtype)


product.defvjp(_product_forward, _product_backward)
