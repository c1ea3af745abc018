"""The one function of the engine that ranks drafted tokens."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Array, Float, Int32

from fjx.kernels.rank import reference
from fjx.kernels.rank.rows import DraftedRows

Implementation = Literal["reference", "mosaic"]


def drafted_ranks(
    hidden: Float[Array, "T D"],
    unembed: Array,
    token_ids: Int32[Array, " V"],
    rows: DraftedRows,
    *,
    soft_cap: float | None = None,
    implementation: Implementation | None = None,
) -> Int32[Array, " T"]:
    """How many tokens each row would rather choose than the drafted one, by the token rule without
    truncation and edits.

    Args:
        hidden: normed rows, float32.
        unembed: a (D, V) matrix as `fjx.kernels.matmul.stored_values` gives it.
        token_ids: what each of its columns is of, in the target's vocabulary.
        rows: the drafted tokens and how the rows choose. What a row without one gets is not
            defined.
        soft_cap: logits become ``soft_cap * tanh(logits / soft_cap)``.
        implementation: None chooses the fastest one for the platform.

    Raises:
        ValueError: ``mosaic`` was asked for, and does not take this matrix.
    """
    ranks = _IMPLEMENTATIONS[implementation or _fastest(unembed)]
    return ranks(hidden, unembed, token_ids, rows, soft_cap=soft_cap)


def _fastest(unembed: Array) -> Implementation:
    """The implementation for an unembedding of this shape and type on this platform."""
    # Until `mosaic` has run on a GPU, it is not chosen by itself.
    return "reference"


def _drafted_ranks_mosaic(*given: Any, **options: Any) -> Array:
    # Pallas takes a fifth of a second to import, which only a GPU needs.
    from fjx.kernels.rank import mosaic

    return mosaic.drafted_ranks(*given, **options)


_IMPLEMENTATIONS = {
    "reference": reference.drafted_ranks,
    "mosaic": _drafted_ranks_mosaic,
}
