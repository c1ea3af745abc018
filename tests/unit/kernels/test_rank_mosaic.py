"""The GPU's kernel of ranks: its counts in an interpreter, and that it compiles for CUDA."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.kernels import mosaic
from fjx.kernels.rank import DraftedRows, drafted_ranks
from fjx.kernels.rank import mosaic as kernel
from scripts.gpu_checks.models import MODELS
from tests.unit.kernels.gpu_cases import one_is_quick
from tests.unit.kernels.test_token_rule_mosaic import interpreted, noise

NONE = -1


class Work:
    """Rows of which one has no draft and is not a number, and columns. Products are sums of
    multiples of 1/8 and the same in any order."""

    def __init__(self, count: int, terms: int, vocabulary: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.hidden = draw.integers(-8, 9, (count, terms)).astype(np.float32) / 4
        self.unembed = (draw.integers(-4, 5, (terms, vocabulary)) / 2).astype(jnp.bfloat16)
        self.token_ids = draw.permutation(10 * vocabulary)[:vocabulary].astype(np.int32)
        self.rows = DraftedRows(
            draw.integers(0, vocabulary, count).astype(np.int32),
            draw.choice(np.float32([0, 0.7, 4, 20]), count),
            draw.integers(0, 2**32, (count, 2), np.uint32),
            draw.integers(0, 10_000, count, np.int32),
        )
        nowhere = draw.integers(count)
        self.hidden[nowhere] = np.nan
        self.rows.drafted[nowhere] = NONE
        self.ranked = np.arange(count) != nowhere

    def values(self, soft_cap: float | None) -> np.ndarray:
        """What competes, in float64."""
        logits = self.hidden.astype(np.float64) @ self.unembed.astype(np.float64)
        if soft_cap is not None:
            logits = soft_cap * np.tanh(logits / soft_cap)
        heat = self.rows.temperature.astype(np.float64)[:, None]
        of_row = kernel.row_bits(self.rows.seed, self.rows.position)
        of_column = kernel.token_bits(jnp.asarray(self.token_ids))
        bits = np.asarray(kernel.mix(of_row[:, None] ^ of_column[None]))
        return np.where(heat > 0, logits / np.where(heat > 0, heat, 1) + noise(bits), logits)

    def ranks(
        self, which: slice = slice(None), *, blocks: int = 2, soft_cap: float | None = None
    ) -> np.ndarray:
        rows = DraftedRows(*(each[which] for each in self.rows))
        rank = jax.jit(partial(kernel.drafted_ranks, soft_cap=soft_cap, blocks=blocks))
        return np.asarray(rank(self.hidden[which], self.unembed, self.token_ids, rows))

    def run(self, *given: Any, **options: Any) -> np.ndarray:
        with mosaic.interpreted(detect_races=True):
            return self.ranks(*given, **options)

    def check(self, ranks: np.ndarray, soft_cap: float | None) -> None:
        """Tokens may count or not that are equal to the drafted one within 1e-5."""
        values = self.values(soft_cap)
        mine = np.take_along_axis(values, np.maximum(self.rows.drafted, 0)[:, None], axis=1)
        near = 1e-5 * np.maximum(1, np.abs(values))
        assert (ranks >= (values > mine + near).sum(axis=1))[self.ranked].all()
        assert (ranks <= (values > mine - near).sum(axis=1))[self.ranked].all()


@interpreted
@settings(max_examples=6, derandomize=True)
@given(
    count=st.integers(1, 140),
    terms=st.sampled_from([64, 128, 576]),
    columns=st.integers(1, 4),
    blocks=st.integers(1, 3),
    soft_cap=st.sampled_from([None, 30.0]),
    seed=st.integers(0, 2**32),
)
def test_ranks_are_those_of_exact_arithmetic(
    count: int, terms: int, columns: int, blocks: int, soft_cap: float | None, seed: int
) -> None:
    work = Work(count, terms, 64 * columns, seed)
    work.check(work.run(blocks=blocks, soft_cap=soft_cap), soft_cap)


@interpreted
def test_no_token_is_larger_than_itself_nor_than_its_equal() -> None:
    """All columns are alike, and so are all values of a greedy row."""
    work = Work(70, 128, 128, seed=0)
    work.unembed[:] = work.unembed[:, :1]
    work.rows.temperature[:] = 0
    assert (work.run()[work.ranked] == 0).all()
    best = Work(70, 128, 128, seed=1)
    best.rows.temperature[best.rows.temperature == 0] = 1
    best.rows.drafted[best.ranked] = best.values(None)[best.ranked].argmax(axis=1)
    assert (best.run()[best.ranked] == 0).all()


@interpreted
def test_the_rank_of_a_row_depends_neither_on_other_rows_nor_on_blocks() -> None:
    work = Work(80, 128, 192, seed=2)
    together = work.run()
    np.testing.assert_array_equal(work.run(blocks=5)[work.ranked], together[work.ranked])
    for which in (slice(0, 3), slice(60, 80)):
        ranked = work.ranked[which]
        np.testing.assert_array_equal(work.run(which)[ranked], together[which][ranked])


def shapes(rows: int, terms: int, vocabulary: int) -> tuple[Any, ...]:
    def shape(*sizes: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    return (
        shape(rows, terms, dtype=jnp.float32),
        shape(terms, vocabulary, dtype=jnp.bfloat16),
        shape(vocabulary),
        DraftedRows(
            shape(rows), shape(rows, dtype=jnp.float32), shape(rows, 2, dtype=jnp.uint32),
            shape(rows),
        ),
    )  # fmt: skip


def test_nothing_of_the_size_of_the_logits_is_made() -> None:
    rows, terms, vocabulary = 128, 64, 64 * 400

    def largest(implementation: Any) -> int:
        rank = partial(drafted_ranks, implementation=implementation)
        made = jax.make_jaxpr(rank)(*shapes(rows, terms, vocabulary)).jaxpr.eqns
        return max(each.aval.size for equation in made for each in equation.outvars)

    assert largest("reference") >= rows * vocabulary
    assert largest("mosaic") <= vocabulary


@pytest.mark.parametrize("rows", [1, 64, 512])
@pytest.mark.parametrize("model", one_is_quick(MODELS))
def test_it_compiles_for_cuda(model: str, rows: int) -> None:
    sizes = MODELS[model]
    rank = partial(drafted_ranks, soft_cap=sizes.logit_cap, implementation="mosaic")
    for columns in (sizes.vocabulary, 8192):
        text = mosaic.lowers(rank, *shapes(rows, sizes.width, columns))
        assert text.count("mosaic_gpu") >= 2


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((64, 64), jnp.float32), ((80, 64), jnp.bfloat16), ((64, 100), jnp.bfloat16)],
    ids=["float32", "terms", "columns"],
)
def test_what_the_kernel_does_not_take(shape: tuple[int, int], dtype: Any) -> None:
    assert not kernel.fits(shape, dtype)
    hidden, _, ids, rows = shapes(3, *shape)
    rank = partial(drafted_ranks, implementation="mosaic")
    with pytest.raises(ValueError, match="use the implementation 'reference'"):
        jax.eval_shape(rank, hidden, jax.ShapeDtypeStruct(shape, dtype), ids, rows)
