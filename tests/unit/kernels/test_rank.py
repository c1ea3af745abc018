"""Ranks of drafted tokens."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fjx.kernels.rank import DraftedRows, drafted_ranks
from fjx.kernels.token_rule import SamplingRows, choose_tokens


def ranks_of(logits: np.ndarray, token_ids: np.ndarray, rows: DraftedRows) -> np.ndarray:
    """Of logits that are there: times one, they keep their bits."""
    one = np.eye(logits.shape[1], dtype=np.float32)
    return np.asarray(jax.jit(drafted_ranks)(logits, one, token_ids, rows))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_ranks_count_the_tokens_that_the_rule_prefers(temperature: float) -> None:
    draw = np.random.default_rng(0)
    rows, vocabulary = 12, 200
    logits = draw.standard_normal((rows, vocabulary)).astype(np.float32) * 3
    seed = draw.integers(0, 2**32, (rows, 2), dtype=np.uint32)
    heat = np.full(rows, temperature, np.float32)
    position = np.arange(rows, dtype=np.int32)
    off, none = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
    by_the_rule = jax.jit(choose_tokens)

    def chosen(logits: np.ndarray) -> np.ndarray:
        sampling = SamplingRows(heat, none, off + 1, off, seed, position)  # type: ignore[arg-type]
        return np.asarray(by_the_rule(logits, sampling))

    ids = np.arange(vocabulary, dtype=np.int32)
    best = DraftedRows(chosen(logits), heat, seed, position)
    assert ranks_of(logits, ids, best).tolist() == [0] * rows
    # Some tokens of the vocabulary, in another order: they keep their noise.
    some = draw.permutation(vocabulary)[:50].astype(np.int32)
    drafted = draw.integers(0, 50, rows).astype(np.int32)
    preferred = np.zeros(rows, int)
    for other in some:
        pair = np.full((rows, vocabulary), -1e9, np.float32)
        pair[:, other] = logits[:, other]
        pair[np.arange(rows), some[drafted]] = logits[np.arange(rows), some[drafted]]
        preferred += chosen(pair) != some[drafted]
    got = ranks_of(logits[:, some], some, DraftedRows(drafted, heat, seed, position))
    assert got.tolist() == preferred.tolist()


def test_a_soft_cap_bounds_what_competes() -> None:
    """Where the noise decides, a higher logit does not help beyond the cap."""
    rows = DraftedRows(
        np.zeros(50, np.int32),
        np.ones(50, np.float32),
        np.zeros((50, 2), np.uint32),
        np.arange(50, dtype=np.int32),
    )
    logits, one = np.float32([[0, 100]] * 50), np.eye(2, dtype=np.float32)
    ids = np.arange(2, dtype=np.int32)
    assert (np.asarray(drafted_ranks(logits, one, ids, rows)) == 1).all()
    capped = np.asarray(drafted_ranks(logits, one, ids, rows, soft_cap=0.1))
    assert set(capped.tolist()) == {0, 1}
