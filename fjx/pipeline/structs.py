"""Abstract arrays: what a program takes, described without data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def struct(shape: tuple[int, ...], dtype: Any) -> Any:
    """A `jax.ShapeDtypeStruct`."""
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def ints(*shape: int) -> Any:
    """Of int32."""
    return struct(shape, jnp.int32)


def floats(*shape: int) -> Any:
    """Of float32."""
    return struct(shape, jnp.float32)


def words(*shape: int) -> Any:
    """Of uint32."""
    return struct(shape, jnp.uint32)
