"""The one attention function of the engine."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from fjx.kernels.attention import numba_cpu, reference
from fjx.kernels.attention.rotation import Rotation
from fjx.kernels.ragged import RaggedRows
from fjx.kernels.vectors import LANES

Implementation = Literal["reference", "numba", "mosaic"]


def kv_pages_shape(
    layers: int, pages: int, page_size: int, kv_heads: int, head_dim: int
) -> tuple[int, ...]:
    """Shape of a granule's KV pages: (layers, pages, 2 = K and V, kv_heads, page_size, head_dim).

    A page of one layer is contiguous, so that moving a page is one copy a layer. How keys lie
    within a page is the implementation's own matter.
    """
    return (layers, pages, 2, kv_heads, page_size, head_dim)


def kv_storage_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The type in which KV pages of ``dtype`` are stored.

    On a CPU, XLA widens a whole bfloat16 array to float32 to update one row of it; the same bits
    stored as uint16 are updated in place.
    """
    as_bits = dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
    stored: jnp.dtype = jnp.dtype(jnp.uint16) if as_bits else dtype
    return stored


def append_and_attend(
    q: Float[Array, "T H D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
    kv_pages: Array,
    layer: int | Int32[Array, ""],
    rows: RaggedRows,
    *,
    rotation: Rotation | None = None,
    scale: float,
    window: Int32[Array, ""] | None = None,
    soft_cap: float | None = None,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "T H D"], Array]:
    """Rotate queries and keys, write keys and values into their pages, attend causally to these.

    Args:
        q: queries, float32, before RoPE where there is a rotation; H is a multiple of K (grouped
            heads: query head h reads KV head ``h // (H // K)``).
        k: keys, likewise, to be written at the rows' positions.
        v: values, to be written there, too.
        kv_pages: one granule's pages, see `kv_pages_shape`; donated by the caller's program.
        layer: index of the layer within the granule.
        rows: the ragged batch.
        rotation: cosine and sine of the rows' angles, see `fjx.kernels.attention.rotation`; None:
            queries and keys are taken as they are.
        scale: factor on the logits.
        window: a row sees at most this many last positions, itself included; None or 0: all.
        soft_cap: logits become ``soft_cap * tanh(logits / soft_cap)``.
        implementation: None chooses the fastest one for the platform, page and head size.

    Returns:
        The attention output in float32, zero in padded rows, and the updated pages.
    """
    if implementation is None:
        implementation = _fastest(kv_pages)
    append_and_attend = _IMPLEMENTATIONS[implementation]
    return append_and_attend(
        q,
        k,
        v,
        kv_pages,
        layer,
        rows,
        rotation=rotation,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
    )


def _fastest(kv_pages: Array) -> Implementation:
    """The implementation for pages of this shape and type on this platform."""
    if jax.default_backend() == "cpu":
        fits = all(size % LANES == 0 for size in kv_pages.shape[4:])
        return "numba" if fits else "reference"
    # Until `mosaic` has run on a GPU, it is not chosen by itself.
    return "reference"


def _append_and_attend_mosaic(*given: Any, **options: Any) -> tuple[Array, Array]:
    # Pallas takes a fifth of a second to import, which only a GPU needs.
    from fjx.kernels.attention import mosaic

    return mosaic.append_and_attend(*given, **options)


_IMPLEMENTATIONS = {
    "reference": reference.append_and_attend,
    "numba": numba_cpu.append_and_attend,
    "mosaic": _append_and_attend_mosaic,
}
