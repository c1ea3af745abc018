"""The token rule: ``token = argmax(process(logits) + gumbel(seed, position))``.

Greedy means no noise.
The noise of a vocabulary entry is a hash of (seed, position, token id) and of nothing else, so a
token does not depend on the batch, and any subset of the vocabulary gets the same noise (Gumbel
coupling: Daliri et al. 2024, "Coupling without communication and drafter-invariant speculative
decoding").

``process`` applies, in this order: repetition, presence and frequency penalties; logit bias; the
mask of tokens that may be chosen; temperature; top-k; top-p within what top-k kept; min-p. Tokens
of equal logit are kept or dropped together.
"""

from fjx.kernels.token_rule.api import choose_tokens
from fjx.kernels.token_rule.reference import (
    LogitEdits,
    SamplingRows,
    edit_logits,
    gumbel,
    largest_token,
    token_probability,
    top_logprobs,
)

__all__ = [
    "LogitEdits",
    "SamplingRows",
    "choose_tokens",
    "edit_logits",
    "gumbel",
    "largest_token",
    "token_probability",
    "top_logprobs",
]
