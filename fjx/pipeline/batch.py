"""One step's arrays, padded to a bucket: all that the programs see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from fjx.kernels.ragged import RaggedRows
from fjx.kernels.token_rule import LogitEdits, SamplingRows


class StepRows(NamedTuple):
    """The integers of a step, as NumPy arrays on the host or traced ones in a program."""

    tokens: Any
    """[T] token of each row; ignored where it comes from the device."""
    token_slot: Any
    """[T] slot whose last sampled token feeds the row; -1: from ``tokens``."""
    rows: RaggedRows
    sample_rows: Any
    """[C] rows that choose a token; only the first ones are used."""
    sample_slots: Any
    """[C] slot whose last token the chosen one becomes; N, which is no slot, where it does not."""


@dataclass(frozen=True)
class StepLayout:
    """How the integers of a step lie in one array, so that a step is one transfer to the device."""

    rows: int
    """T, rows of the step."""
    requests: int
    """R, requests of the step."""
    pages: int
    """P, pages of the longest context."""
    slots: int
    """N, most requests in any step."""
    samples: int
    """C, most rows of any step that choose a token."""

    @property
    def size(self) -> int:
        """Entries of the array."""
        return 4 * self.rows + (2 + self.pages) * self.requests + 1 + 2 * self.samples

    def split(self, packed: Any) -> StepRows:
        """Views of a NumPy array, or slices of a traced one."""
        T, R, C = self.rows, self.requests, self.samples
        parts, start = [], 0
        for size in (T, T, T, T, R + 1, R, C, C, R * self.pages):
            parts.append(packed[start : start + size])
            start += size
        tokens, token_slot, positions, request_of, query_start, context_len = parts[:6]
        page_table = parts[8].reshape(R, self.pages)
        rows = RaggedRows(positions, request_of, query_start, context_len, page_table)
        return StepRows(tokens, token_slot, rows, parts[6], parts[7])

    @staticmethod
    def tokens(at: StepRows, last_token: Any) -> Any:
        """[T] each row's token: from the host, or the last one sampled in its slot."""
        return jnp.where(at.token_slot >= 0, last_token[at.token_slot], at.tokens)


@dataclass(frozen=True)
class Batch:
    """A ragged step of T rows, of which S rows choose a token. All arrays are NumPy's."""

    packed: Int32[np.ndarray, " size"]
    """The step's integers, see `StepLayout`."""
    num_rows: int
    """T, padding included."""
    num_samples: int
    """Rows that choose a token."""
    sample_bucket: int
    """S, padding included."""
    sampling: SamplingRows | None
    """None: all rows are greedy."""
    edits: LogitEdits | None
    """None: no row has penalties or bias."""
    pending_slot: Int32[np.ndarray, " S"] | None
    """With ``edits``: slot of a known token that the host has not read yet, -1: none."""
    logprobs: bool
    """Whether log-probabilities are returned."""
    scored: Int32[np.ndarray, " C"] | None = None
    """With ``logprobs``: the token that a row scores instead of the one that it chooses, -1: none.
    """
