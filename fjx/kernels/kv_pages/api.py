"""The pages of KV memory as they are moved."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from fjx.kernels.kv_pages import numba_cpu, reference

Implementation = Literal["reference", "numba", "mosaic"]


def new_pages(shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """KV memory of zeros.

    On a CPU it is not written: a page takes memory from when it is first used, and filling
    gigabytes would take the time of steps.
    """
    if jax.default_backend() == "cpu":
        return numba_cpu.new_pages(shape, dtype)
    return jnp.zeros(shape, dtype)


def take_pages(
    kv_pages: Array, pages: Int32[Array, " N"], implementation: Implementation | None = None
) -> Array:
    """The contents of some pages, (layers, N, 2, kv_heads, page_size, head_dim).

    Args:
        kv_pages: a granule's pages, see `fjx.kernels.attention.kv_pages_shape`.
        pages: their ids, in any order; one may be there more than once.
        implementation: None chooses the fastest one for the platform.
    """
    take, _ = _functions(implementation or _fastest())
    taken: Array = take(kv_pages, pages)
    return taken


def put_pages(
    kv_pages: Array,
    pages: Int32[Array, " N"],
    contents: Array,
    implementation: Implementation | None = None,
) -> Array:
    """Write what `take_pages` took.

    Args:
        kv_pages: a granule's pages; the caller's program donates them.
        pages: where the contents go. An id may be there more than once with equal contents, as
            padding is: they are written in no order, and all leave the same bytes.
        contents: (layers, N, 2, kv_heads, page_size, head_dim).
        implementation: None chooses the fastest one for the platform.

    Returns:
        The pages; those without an id here are as they were.
    """
    _, put = _functions(implementation or _fastest())
    after: Array = put(kv_pages, pages, contents)
    return after


def _fastest() -> Implementation:
    # Until `mosaic` has run on a GPU, it is not chosen by itself.
    return "numba" if jax.default_backend() == "cpu" else "reference"


def _functions(implementation: Implementation) -> tuple[Any, Any]:
    """How pages are taken, and put."""
    if implementation == "mosaic":
        # Pallas takes a fifth of a second to import, which only a GPU needs.
        from fjx.kernels.kv_pages import mosaic

        return mosaic.take_pages, mosaic.put_pages
    if implementation == "numba":
        return numba_cpu.take_pages, numba_cpu.put_pages
    return reference.take_pages, reference.put_pages
