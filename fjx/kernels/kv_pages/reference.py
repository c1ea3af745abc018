"""Pages moved by plain jnp: the oracle of every other implementation."""

from __future__ import annotations

from jaxtyping import Array, Int32


def take_pages(kv_pages: Array, pages: Int32[Array, " N"]) -> Array:
    """See `fjx.kernels.kv_pages.api.take_pages`."""
    return kv_pages[:, pages]


def put_pages(kv_pages: Array, pages: Int32[Array, " N"], contents: Array) -> Array:
    """See `fjx.kernels.kv_pages.api.put_pages`."""
    return kv_pages.at[:, pages].set(contents)
