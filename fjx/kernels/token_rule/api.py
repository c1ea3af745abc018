"""The one function of the engine that chooses tokens."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Array, Float, Int32

from fjx.kernels.token_rule import reference
from fjx.kernels.token_rule.reference import SamplingRows

Implementation = Literal["reference", "mosaic"]


def choose_tokens(
    logits: Float[Array, "S V"],
    rows: SamplingRows,
    *,
    implementation: Implementation | None = None,
) -> Int32[Array, " S"]:
    """Choose one token a row by the token rule, the first among equals.

    A row's token depends on that row alone. Implementations may differ where two tokens' values
    with noise are equal but for rounding, about one part in 10**6.

    Args:
        logits: after penalties and bias, float32.
        rows: how each row chooses.
        implementation: None chooses the fastest one for the platform.
    """
    return _IMPLEMENTATIONS[implementation or _fastest()](logits, rows)


def _fastest() -> Implementation:
    # Until `mosaic` has run on a GPU, it is not chosen by itself.
    return "reference"


def _choose_tokens_mosaic(*given: Any) -> Array:
    # Pallas takes a fifth of a second to import, which only a GPU needs.
    from fjx.kernels.token_rule import mosaic

    return mosaic.choose_tokens(*given)


_IMPLEMENTATIONS = {
    "reference": reference.choose_tokens,
    "mosaic": _choose_tokens_mosaic,
}
