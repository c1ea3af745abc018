"""What a draft head is trained to: the target's own distribution, and its hidden state."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

_CHUNK = 512
"""Rows whose logits are held at a time."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def soft_cross_entropy(
    normed: Float[Array, "S N D"],
    next_normed: Float[Array, "N D"],
    unembed: Float[Array, "D V"],
    weights: Float[Array, "S N"],
    soft_cap: float | None,
) -> tuple[Float[Array, " S"], Int32[Array, "S N"]]:
    """Cross-entropy of the head's distribution against the target's, over the head's vocabulary.

    Args:
        normed: the head's estimates behind the final norm, of S passes.
        next_normed: the target's own, likewise.
        unembed: the columns of the head's vocabulary.
        weights: of each row.
        soft_cap: see `ModelConfig.logit_soft_cap`.

    Returns:
        The weighted sum of each pass, and the index of the head's most likely token.
    """
    sums, chosen, _ = _with_gradient(normed, next_normed, unembed, weights, soft_cap)
    return sums, chosen


def _with_gradient(
    normed: Array, next_normed: Array, unembed: Array, weights: Array, soft_cap: float | None
) -> tuple[Array, Array, Array]:
    """Also the derivative of each pass's sum by ``normed``: so logits are never kept, and never
    computed twice."""

    def logits_of(x: Array) -> tuple[Array, Array | float]:
        raw = _dot(x, unembed, 0)
        if soft_cap is None:
            return raw, 1.0
        tanh = jnp.tanh(raw / soft_cap)
        return soft_cap * tanh, 1 - tanh * tanh

    passes, rows = normed.shape[:2]
    sums, chosen, gradients = [jnp.zeros(())] * passes, [], []
    for begin in range(0, rows, _CHUNK):
        at = slice(begin, min(begin + _CHUNK, rows))
        goal = jax.nn.softmax(logits_of(next_normed[at])[0])
        for number in range(passes):
            logits, slope = logits_of(normed[number, at])
            top = logits.max(axis=-1, keepdims=True)
            shares = jnp.exp(logits - top)
            total = shares.sum(axis=-1, keepdims=True)
            entropy = (jnp.log(total) + top)[:, 0] - jnp.sum(goal * logits, axis=-1)
            weight = weights[number, at]
            sums[number] += jnp.sum(weight * entropy)
            chosen.append(jnp.argmax(logits, axis=-1).astype(jnp.int32))
            change = (shares / total - goal) * slope * weight[:, None]
            gradients.append(_dot(change, unembed, 1))

    def of_passes(parts: list[Array]) -> Array:
        return jnp.stack([jnp.concatenate(parts[number::passes]) for number in range(passes)])

    return jnp.stack(sums), of_passes(chosen), of_passes(gradients)


def _dot(x: Array, matrix: Array, contracted: int) -> Array:
    y: Array = lax.dot_general(
        x.astype(matrix.dtype),
        matrix,
        (((1,), (contracted,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return y


def _forward(
    normed: Array, next_normed: Array, unembed: Array, weights: Array, soft_cap: float | None
) -> Any:
    sums, chosen, gradients = _with_gradient(normed, next_normed, unembed, weights, soft_cap)
    return (sums, chosen), (gradients, next_normed, unembed, weights)


def _backward(soft_cap: float | None, saved: Any, change: tuple[Array, Any]) -> Any:
    gradients, *constants = saved
    return change[0][:, None, None] * gradients, *map(jnp.zeros_like, constants)


soft_cross_entropy.defvjp(_forward, _backward)


def hidden_loss(
    normed: Float[Array, "S N D"], next_normed: Float[Array, "N D"], weights: Float[Array, "S N"]
) -> Float[Array, " S"]:
    """Smooth L1 (Huber 1964) between estimates and the target's own hidden state, both behind the
    final norm and in units of the latter's spread; the weighted sum of each pass."""
    spread = jnp.sqrt(jnp.mean(next_normed * next_normed) + 1e-6)
    apart = jnp.abs(normed - next_normed) / spread
    smooth = jnp.where(apart < 1, 0.5 * apart * apart, apart - 0.5)
    return jnp.sum(weights * smooth.mean(axis=-1), axis=-1)
