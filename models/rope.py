"""The angles of rotary position embedding (RoPE; Su et al. 2021, arXiv:2104.09864).

A model holds one or more tables of frequencies; what scaling schemes change is only the table.
Attention's kernels rotate by them, see `fjx.kernels.attention.rotation`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from fjx.errors import ModelError


def frequencies(head_dim: int, theta: float) -> tuple[float, ...]:
    """The angle, in radians a position, of each of the ``head_dim / 2`` rotated pairs."""
    return tuple(theta ** (-2 * pair / head_dim) for pair in range(head_dim // 2))


def scaled(table: Sequence[float], scaling: Mapping[str, Any]) -> tuple[float, ...]:
    """Apply a ``rope_scaling`` entry of a config.json to a table of frequencies.

    Raises:
        ModelError: the kind of scaling is unknown, or one of its numbers is missing.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return tuple(table)
    if kind not in ("linear", "llama3"):
        raise ModelError(
            f"the model scales RoPE by {kind!r}, which is not supported; "
            "supported are 'default', 'linear' and 'llama3'"
        )
    try:
        factor = float(scaling["factor"])
        if not 0 < factor < math.inf:
            raise ValueError(f"the factor is {factor}; expected a finite number above 0")
        if kind == "linear":
            return tuple(frequency / factor for frequency in table)
        return tuple(_llama3(frequency, factor, scaling) for frequency in table)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the model's rope_scaling of kind {kind!r} is incomplete or malformed: {error}"
        ) from None


def _llama3(frequency: float, factor: float, scaling: Mapping[str, Any]) -> float:
    # Llama 3.1: long wavelengths are stretched by the factor, short ones kept, others blended.
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    if not high > low:
        raise ValueError(f"high_freq_factor {high} is not above low_freq_factor {low}")
    turns = float(scaling["original_max_position_embeddings"]) * frequency / (2 * math.pi)
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    kept = (turns - low) / (high - low)
    return (1 - kept) * frequency / factor + kept * frequency


def cos_sin(
    tables: tuple[tuple[float, ...], ...], positions: Int32[Array, " T"]
) -> tuple[Float[Array, "N T P"], Float[Array, "N T P"]]:
    """Cosine and sine of each row's angles, float32, for N tables of P pairs."""
    angles = jnp.asarray(tables, jnp.float32)[:, None] * positions[:, None].astype(jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)


def cos_sin_once(
    tables: tuple[tuple[float, ...], ...], positions: Int32[Array, " T"]
) -> tuple[Float[Array, "N T P"], Float[Array, "N T P"]]:
    """`cos_sin`, computed once where a program uses it many times.

    XLA on a CPU would fuse it into every layer's rotation and compute it again for each head (an
    optimization barrier is dropped before fusion); it does not fuse across a conditional.
    """
    if jax.default_backend() != "cpu":
        return cos_sin(tables, positions)
    unused = jnp.zeros((len(tables), len(positions), len(tables[0])), jnp.float32)
    once: tuple[Array, Array] = lax.cond(
        positions[0] >= 0, lambda: cos_sin(tables, positions), lambda: (unused, unused)
    )
    return once
