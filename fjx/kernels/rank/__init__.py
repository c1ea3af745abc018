"""Ranks of drafted tokens by a part of a target's unembedding, without its logits in memory."""

from fjx.kernels.rank.api import drafted_ranks
from fjx.kernels.rank.rows import DraftedRows

__all__ = ["DraftedRows", "drafted_ranks"]
