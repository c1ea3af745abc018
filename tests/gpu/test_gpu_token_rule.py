"""Choosing tokens and ranking drafted ones on a GPU: right, whatever is in the batch."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fjx.kernels.token_rule import gumbel
from tests.unit.kernels.test_rank_mosaic import Work
from tests.unit.kernels.test_token_rule_mosaic import choose, sampling, some, values

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="needs a Hopper GPU, on which nothing is interpreted"
)


@pytest.mark.parametrize("vocabulary", [100, 5000, 128256, 262208])
def test_a_token_is_the_best_one_in_exact_arithmetic(vocabulary: int) -> None:
    logits = 4 * np.random.default_rng(0).standard_normal((20, vocabulary)).astype(np.float32)
    rows = sampling(20)
    tokens = choose(logits, rows, blocks=132)
    for token, of_row in zip(tokens, values(logits, rows), strict=True):
        assert of_row[token] >= of_row.max() - 1e-5 * max(1, abs(of_row.max()))


def test_a_row_has_the_same_token_in_every_batch_and_grid() -> None:
    """Logits that the noise makes all but equal: the last bit of each value decides."""
    rows = sampling(16, temperatures=(1,))
    logits = -np.asarray(gumbel(rows.seed, rows.position, np.arange(49152, dtype=np.int32)))
    together = choose(logits, rows, blocks=132)
    np.testing.assert_array_equal(choose(logits, rows, blocks=7), together)
    for i in range(16):
        alone = choose(logits[i : i + 1], some(rows, slice(i, i + 1)), blocks=132)
        np.testing.assert_array_equal(alone, together[i])


@pytest.mark.parametrize("soft_cap", [None, 30.0])
def test_ranks_are_those_of_exact_arithmetic(soft_cap: float | None) -> None:
    work = Work(200, 576, 8192, seed=0)
    ranks = work.ranks(blocks=132, soft_cap=soft_cap)
    work.check(ranks, soft_cap)
    for which in (slice(0, 1), slice(70, 200)):
        alone = work.ranks(which, blocks=7, soft_cap=soft_cap)
        np.testing.assert_array_equal(alone[work.ranked[which]], ranks[which][work.ranked[which]])


def test_no_token_is_larger_than_itself() -> None:
    work = Work(200, 576, 8192, seed=1)
    work.unembed[:] = work.unembed[:, :1]
    work.rows.temperature[:] = 0
    assert (work.ranks(blocks=132)[work.ranked] == 0).all()
