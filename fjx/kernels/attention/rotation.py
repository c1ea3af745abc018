"""The rotation of rotary position embedding (RoPE; Su et al. 2021, arXiv:2104.09864).

Attention's kernels rotate queries and keys themselves; angles come from a model, see
`fjx.models.rope`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

Rotation = tuple[Float[Array, "T P"], Float[Array, "T P"]]
"""Cosine and sine of each row's angles, float32; P pairs are the half of a head."""


def rotate(x: Float[Array, "T H D"], rotation: Rotation | None) -> Float[Array, "T H D"]:
    """Rotate pair i, made of elements i and i + D/2 of each head, by the row's angle i.

    None: nothing is rotated.
    """
    if rotation is None:
        return x
    cos, sin = (each[:, None] for each in rotation)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
