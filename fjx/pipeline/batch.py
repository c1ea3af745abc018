"""One step's arrays, padded to a bucket: all that the programs see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from fjx.kernels.ragged import RaggedRows
from fjx.kernels.token_rule import LogitEdits, SamplingRows


@dataclass(frozen=True)
class Batch:
    """A ragged step of T rows and R requests, of which S rows choose a token. All arrays are NumPy's."""

    tokens: Int32[np.ndarray, "T"]
    """Token of each row; ignored where it comes from the device."""
    token_slot: Int32[np.ndarray, "T"]
    """Slot whose last sampled token feeds the row; -1: from ``tokens``."""
    rows: RaggedRows
    sample_rows: Int32[np.ndarray, "R"]
    """Rows that choose a token, first S used."""
    sample_slots: Int32[np.ndarray, "S"]
    """Slot of each chosen token; one past the last slot where padded."""
    sampling: SamplingRows | None
    """None: all rows are greedy."""
    edits: LogitEdits | None
    """None: no row has penalties or bias."""
    pending_slot: Int32[np.ndarray, "S"] | None
    """With ``edits``: slot of a known token that the host has not read yet, -1: none."""
    num_samples: int
    """Rows of S that are not padding."""
    logprobs: bool
    """Whether log-probabilities are returned."""
