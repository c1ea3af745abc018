"""The GPU's kernel of the token rule: tokens in an interpreter, and that it compiles for CUDA."""

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
from fjx.kernels.token_rule import SamplingRows, choose_tokens, gumbel, reference
from fjx.kernels.token_rule import mosaic as kernel
from fjx.kernels.token_rule.noise import noise_of
from fjx.kernels.token_rule.reference import mix, row_bits, token_bits
from scripts.gpu_checks.models import MODELS
from tests.unit.kernels.gpu_cases import interpreted


def sampling(rows: int, seed: int = 0, temperatures: tuple[float, ...] = (0, 0.7, 1, 2)) -> Any:
    draw = np.random.default_rng(seed)
    return SamplingRows(
        draw.choice(np.float32(temperatures), rows),
        np.zeros(rows, np.int32),
        np.ones(rows, np.float32),
        np.zeros(rows, np.float32),
        draw.integers(0, 2**32, (rows, 2), np.uint32),
        draw.integers(0, 10_000, rows, np.int32),
    )


def some(rows: SamplingRows, which: slice) -> SamplingRows:
    return SamplingRows(*(each[which] for each in rows))


def choose(logits: np.ndarray, rows: SamplingRows, blocks: int = 2) -> np.ndarray:
    return np.asarray(jax.jit(partial(kernel.choose_tokens, blocks=blocks))(logits, rows))


def run(logits: np.ndarray, rows: SamplingRows, blocks: int = 2) -> np.ndarray:
    with mosaic.interpreted(detect_races=True):
        return choose(logits, rows, blocks)


def noise(bits: np.ndarray) -> np.ndarray:
    """In float64, of the same numbers between 0 and 1."""
    u = (bits.astype(np.float32) + np.float32(0.5)).astype(np.float64) * 2.0**-32
    return np.asarray(-np.log(-np.log1p(-np.minimum(u, 1 - 2.0**-24))))


def bits_of(rows: SamplingRows, vocabulary: int) -> np.ndarray:
    of_token = token_bits(jnp.arange(vocabulary, dtype=jnp.int32))
    return np.asarray(mix(row_bits(rows.seed, rows.position)[:, None] ^ of_token[None]))


def values(logits: np.ndarray, rows: SamplingRows) -> np.ndarray:
    """What the token rule compares, in float64."""
    heat = rows.temperature.astype(np.float64)[:, None]
    noisy = logits / np.where(heat > 0, heat, 1) + noise(bits_of(rows, logits.shape[1]))
    return np.where(heat > 0, noisy, logits)


def test_the_noise_is_exact_where_it_is_largest_and_everywhere_else() -> None:
    ends = np.arange(2**16, dtype=np.uint32)
    middle = np.random.default_rng(0).integers(0, 2**32, 1_000_000, np.uint32)
    near_one = np.uint32((1 - np.exp(-1)) * 2**32) + ends  # where the noise is about 0
    bits = np.concatenate([ends, ~ends, middle, near_one])
    expected = noise(bits)
    error = np.abs(np.asarray(jax.jit(noise_of)(bits)) - expected)
    assert (error / np.maximum(1, np.abs(expected))).max() < 5e-7


def test_the_noise_is_that_of_the_reference() -> None:
    rows = sampling(3)
    tokens = np.arange(2000, dtype=np.int32)
    expected = np.asarray(gumbel(rows.seed, rows.position, tokens))
    found = np.asarray(noise_of(jnp.asarray(bits_of(rows, 2000))))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@interpreted
@settings(max_examples=6, derandomize=True)
@given(
    count=st.integers(1, 5),
    vocabulary=st.one_of(st.integers(1, 4000), st.sampled_from([1024, 2048, 2064])),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_a_token_is_the_best_one_in_exact_arithmetic(
    count: int, vocabulary: int, blocks: int, seed: int
) -> None:
    """One row more is not a number, and may not reach the others."""
    draw = np.random.default_rng(seed)
    logits = 4 * draw.standard_normal((count + 1, vocabulary)).astype(np.float32)
    logits[draw.integers(count + 1)] = np.nan
    rows = sampling(count + 1, seed)
    tokens = run(logits, rows, blocks)
    assert ((tokens >= 0) & (tokens < vocabulary)).all()
    for token, of_row in zip(tokens, values(logits, rows), strict=True):
        if not np.isnan(of_row).any():
            assert of_row[token] >= of_row.max() - 1e-5 * max(1, abs(of_row.max()))


@interpreted
def test_a_row_has_the_same_token_in_every_batch_and_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that the noise makes all but equal: the last bit of each value decides."""
    rows = sampling(3, seed=4, temperatures=(1,))
    logits = -np.asarray(gumbel(rows.seed, rows.position, np.arange(5000, dtype=np.int32)))
    together = run(logits, rows)
    assert len(np.unique(together)) == 3
    np.testing.assert_array_equal(run(logits, rows, blocks=5), together)
    for i in range(3):
        alone = run(logits[i : i + 1], some(rows, slice(i, i + 1)), blocks=1)
        np.testing.assert_array_equal(alone, together[i])
    monkeypatch.setattr(kernel, "_MAX_PIECES", 1)
    np.testing.assert_array_equal(run(logits, rows, blocks=1), together)


@interpreted
@pytest.mark.parametrize("levels", [1, 2, 40])
def test_the_first_of_equal_tokens_is_chosen(levels: int) -> None:
    logits = np.random.default_rng(levels).integers(0, levels, (3, 4500)).astype(np.float32)
    logits[0] = -np.inf
    logits[1, 4490:] = levels
    for blocks in (1, 4):
        tokens = run(logits, sampling(3, temperatures=(0,)), blocks)
        np.testing.assert_array_equal(tokens, logits.argmax(axis=1))


@interpreted
def test_rows_that_truncate_choose_as_in_the_reference_and_change_no_others() -> None:
    logits = 3 * np.random.default_rng(3).standard_normal((8, 3000)).astype(np.float32)
    rows = sampling(8, seed=9, temperatures=(0.8,))
    plain = run(logits, rows)
    rows.top_k[1], rows.top_p[3], rows.min_p[5] = 3, 0.3, 0.4
    rows.temperature[6] = 0
    expected = np.asarray(jax.jit(reference.choose_tokens)(logits, rows))
    found = run(logits, rows)
    np.testing.assert_array_equal(found, expected)
    others = [0, 2, 4, 7]
    np.testing.assert_array_equal(found[others], plain[others])
    assert (found[[1, 3, 5]] != plain[[1, 3, 5]]).any()


VOCABULARIES = {each.vocabulary for each in MODELS.values()} | {32001}


@pytest.mark.parametrize("rows", [1, 64, 256])
@pytest.mark.parametrize("vocabulary", sorted(VOCABULARIES))
def test_it_compiles_for_cuda(vocabulary: int, rows: int) -> None:
    logits = jax.ShapeDtypeStruct((rows, vocabulary), jnp.float32)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), sampling(rows))
    function = partial(choose_tokens, implementation="mosaic")
    assert "mosaic_gpu" in mosaic.lowers(function, logits, given)
