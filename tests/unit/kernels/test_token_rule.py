"""The token rule: which tokens may be chosen, how often, and what the choice depends on."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.kernels.token_rule import (
    LogitEdits,
    SamplingRows,
    choose_tokens,
    edit_logits,
    gumbel,
    largest_token,
    top_logprobs,
)

V = 32
choose = jax.jit(choose_tokens)
edit = jax.jit(edit_logits)
noise_of = jax.jit(gumbel)


def sampling(
    rows: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    position: Any = 0,
) -> SamplingRows:
    return SamplingRows(
        np.full(rows, temperature, np.float32),
        np.full(rows, top_k, np.int32),
        np.full(rows, top_p, np.float32),
        np.full(rows, min_p, np.float32),
        np.tile(np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32), (rows, 1)),
        np.broadcast_to(np.asarray(position, np.int32), rows),
    )


def kept_tokens(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> np.ndarray:
    """The tokens that truncation keeps, by sorting; equal logits are kept or dropped together."""
    scaled = (logits / np.float32(temperature)).astype(np.float64)
    weights = np.exp(scaled - scaled.max())
    kept = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        kept &= scaled >= np.sort(scaled)[-top_k]
    if top_p < 1:
        mass = np.where(kept, weights, 0).sum()
        above = np.array([weights[scaled > each].sum() for each in scaled])
        kept &= above < top_p * mass
    if min_p > 0:
        kept &= weights >= min_p
    return kept


def on_an_edge(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> bool:
    """Whether a slightly different top-p or min-p keeps other tokens."""
    sets = [
        kept_tokens(logits, temperature, top_k, min(1.0, top_p * (1 + e)), min_p * (1 + e))
        for e in ((-1e-5, 1e-5) if top_p < 1 else (0.0,))
    ] + [kept_tokens(logits, temperature, top_k, top_p, min_p * (1 + e)) for e in (-1e-5, 1e-5)]
    return any((each != sets[0]).any() for each in sets)


def test_greedy_takes_the_most_likely_token() -> None:
    logits = np.random.default_rng(0).standard_normal((4, V), np.float32)
    rows = sampling(4, temperature=0, top_k=3, top_p=0.5, min_p=0.5)
    np.testing.assert_array_equal(choose(logits, rows), logits.argmax(-1))


def test_greedy_and_sampled_rows_can_be_mixed() -> None:
    logits = np.random.default_rng(0).standard_normal((6, V), np.float32)
    rows = sampling(6, position=np.arange(6))
    drawn = np.asarray(choose(logits, rows))
    rows.temperature[::2] = 0
    expected = np.where(np.arange(6) % 2 == 0, logits.argmax(-1), drawn)
    np.testing.assert_array_equal(choose(logits, rows), expected)


CASES = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 2.5},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.15},
    "all": {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
}


@pytest.mark.parametrize("axis", ["positions", "seeds"])
@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_truncated_softmax(name: str, axis: str) -> None:
    """Chi-square over 20,000 draws; a right rule fails one run in 10,000."""
    params = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | CASES[name]
    draws = 20_000
    logits = 1.5 * np.random.default_rng(5).standard_normal(V).astype(np.float32)
    rows = sampling(draws, seed=17, **params)
    if axis == "positions":
        rows = rows._replace(position=np.arange(draws, dtype=np.int32))
    else:
        rows.seed[:, 0] = np.arange(draws)
    tokens = np.asarray(choose(np.tile(logits, (draws, 1)), rows))
    kept = kept_tokens(logits, **params)
    weights = np.where(kept, np.exp(logits.astype(np.float64) / params["temperature"]), 0)
    expected = draws * weights / weights.sum()
    counts = np.bincount(tokens, minlength=V)
    assert not counts[~kept].any(), "a truncated token was drawn"
    enough = expected >= 5
    rest = counts[~enough].sum(), expected[~enough].sum()
    statistic = ((counts - expected)[enough] ** 2 / expected[enough]).sum()
    statistic += (rest[0] - rest[1]) ** 2 / max(rest[1], 1)
    freedom = int(enough.sum())
    # Wilson-Hilferty approximation of the 0.9999 quantile.
    threshold = freedom * (1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < threshold


def test_draws_at_successive_positions_are_independent() -> None:
    """Pairs of neighbours are as frequent as the product says, for a fair choice among four."""
    logits = np.full((20_000, 4), 0, np.float32)
    rows = sampling(20_000, seed=3, position=np.arange(20_000))
    tokens = np.asarray(choose(logits, rows))
    pairs = np.bincount(4 * tokens[::2] + tokens[1::2], minlength=16)
    assert ((pairs - 625) ** 2 / 625).sum() < 45  # 15 degrees of freedom, 1 in 10,000


logit_values = st.one_of(
    st.integers(-4, 4).map(float), st.integers(-8192, 8192).map(lambda i: i / 1024)
)


@settings(max_examples=300, derandomize=True)
@given(
    logits=st.lists(logit_values, min_size=V, max_size=V),
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0]),
    top_k=st.integers(0, V + 3),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
    seed=st.integers(0, 2**63),
    position=st.integers(0, 10_000),
)
def test_the_choice_is_the_noisy_best_of_the_kept_set(
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
) -> None:
    values = np.array(logits, np.float32)
    truncation = (temperature, top_k, top_p, min_p)
    rows = sampling(2, *truncation, seed=seed, position=position)
    token = int(choose(np.stack([values, values]), rows)[0])
    if on_an_edge(values, *truncation):
        return
    kept = kept_tokens(values, *truncation)
    assert kept[token]
    noise = np.asarray(noise_of(rows.seed, rows.position, np.arange(V, dtype=np.int32)))[0]
    noisy = np.where(kept, values / np.float32(temperature) + noise, -np.inf)
    assert noisy[token] >= noisy.max() - 1e-4


def test_a_token_does_not_depend_on_the_rows_beside_it() -> None:
    random = np.random.default_rng(1)
    logits = random.standard_normal((24, V), np.float32) * 3
    rows = SamplingRows(
        random.choice(np.float32([0, 0.5, 1, 2]), 24),
        random.integers(0, 9, 24, np.int32),
        random.choice(np.float32([0.3, 0.9, 1]), 24),
        random.choice(np.float32([0, 0.1]), 24),
        random.integers(0, 2**32, (24, 2), np.uint32),
        random.integers(0, 99, 24, np.int32),
    )
    together = np.asarray(choose(logits, rows))
    for size in (2, 3):
        for start in range(0, 24, size):
            some = slice(start, start + size)
            alone = choose(logits[some], SamplingRows(*(each[some] for each in rows)))
            np.testing.assert_array_equal(alone, together[some])


def test_noise_is_a_function_of_seed_position_and_token() -> None:
    seed = np.array([[1, 2], [1, 2], [1, 3], [2, 2], [1, 2]], np.uint32)
    position = np.array([7, 8, 7, 7, 7], np.int32)
    every = np.asarray(noise_of(seed, position, np.arange(1000, dtype=np.int32)))
    some = np.arange(3, 1000, 7, dtype=np.int32)[::-1]
    np.testing.assert_array_equal(noise_of(seed, position, some), every[:, some])
    np.testing.assert_array_equal(noise_of(seed[3:4], position[3:4], some), every[3:4, some])
    np.testing.assert_array_equal(every[0], every[4])
    correlation = np.corrcoef(every[:4])
    assert np.abs(correlation - np.eye(4)).max() < 0.15
    assert len(np.unique(every[:4])) > 3990


def test_noise_has_the_gumbel_distribution() -> None:
    noise = np.asarray(
        noise_of(
            np.array([[5, 0]], np.uint32), np.zeros(1, np.int32), np.arange(200_000, dtype=np.int32)
        )
    )[0]
    assert np.isfinite(noise).all()
    quantiles = np.array([0.001, 0.1, 0.5, 0.9, 0.999, 0.9999])
    expected = -np.log(-np.log(quantiles))
    error = np.abs(np.quantile(noise, quantiles) - expected)
    assert (error < [0.05, 0.05, 0.05, 0.05, 0.3, 0.7]).all()


def edits(history: list[int], prompt_len: int, **changes: Any) -> LogitEdits:
    padded = np.full((2, 12), -1, np.int32)
    padded[0, : len(history)] = history
    values: dict[str, Any] = {
        "history": padded,
        "prompt_len": np.array([prompt_len, 0], np.int32),
        "repetition": np.ones(2, np.float32),
        "presence": np.zeros(2, np.float32),
        "frequency": np.zeros(2, np.float32),
        "bias_ids": np.full((2, 3), -1, np.int32),
        "bias": np.zeros((2, 3), np.float32),
        "allowed": np.full((2, -(-V // 32)), 0xFFFFFFFF, np.uint32),
    }
    for name, value in changes.items():
        values[name] = values[name].copy()
        values[name][0] = value
    return LogitEdits(**values)


LOGITS = np.stack([np.linspace(-2, 3, V, dtype=np.float32)] * 2)
HISTORY = [3, 3, 20, 20, 20, 31, 3]  # the first three are the prompt


def test_repetition_counts_prompt_and_output() -> None:
    expected = LOGITS.copy()
    for token in (3, 20, 31):
        value = expected[0, token]
        expected[0, token] = value / 1.5 if value > 0 else value * 1.5
    np.testing.assert_allclose(edit(LOGITS, edits(HISTORY, 3, repetition=1.5)), expected, rtol=1e-6)


def test_presence_and_frequency_count_the_output_only() -> None:
    expected = LOGITS.copy()
    for token, times in ((3, 1), (20, 2), (31, 1)):
        expected[0, token] -= 0.5 + 0.25 * times
    changed = edit(LOGITS, edits(HISTORY, 3, presence=0.5, frequency=0.25))
    np.testing.assert_allclose(changed, expected, rtol=1e-6)


def test_bias_is_added_after_penalties() -> None:
    expected = LOGITS.copy()
    expected[0, 31] = expected[0, 31] / 2 + 5
    expected[0, 0] -= 7
    changed = edit(
        LOGITS, edits([31], 1, repetition=2.0, bias_ids=[31, 0, -1], bias=[5.0, -7.0, 9.0])
    )
    np.testing.assert_allclose(changed, expected, rtol=1e-6)


def test_without_edits_logits_keep_their_bits() -> None:
    np.testing.assert_array_equal(edit(LOGITS, edits(HISTORY, 3)), LOGITS)


@pytest.mark.parametrize("width", [V, 40])
def test_what_is_not_allowed_is_never_chosen(width: int) -> None:
    logits = np.random.default_rng(3).standard_normal((2, width)).astype(np.float32)
    kept = {3, 31, width - 6}
    allowed = np.full((2, -(-width // 32)), 0xFFFFFFFF, np.uint32)
    allowed[0] = 0
    for token in kept:
        allowed[0, token // 32] |= np.uint32(1 << token % 32)
    changed = np.asarray(edit(logits, edits([], 0)._replace(allowed=allowed)))
    for token in range(width):
        assert changed[0, token] == (logits[0, token] if token in kept else -np.inf)
    np.testing.assert_array_equal(changed[1], logits[1])
    for seed in range(20):
        for more in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 30, "top_p": 0.5}):
            rows: Any = sampling(2, seed=seed, temperature=5.0, **more)
            assert int(choose(changed, rows)[0]) in kept


EXTREME_LOGITS = {
    "plain": LOGITS[0],
    "equal": np.zeros(V, np.float32),
    "large": np.where(np.arange(V) == 7, np.float32(3e38), LOGITS[0]),
    "infinite": np.where(np.arange(V) == 7, np.float32(np.inf), LOGITS[0]),
    "two infinite": np.where(np.isin(np.arange(V), [7, 9]), np.float32(np.inf), LOGITS[0]),
    "masked but one": np.where(np.arange(V) == 7, LOGITS[0], np.float32(-np.inf)),
    "all masked": np.full(V, -np.inf, np.float32),
    "some not a number": np.where(np.arange(V) % 3 == 0, np.float32(np.nan), LOGITS[0]),
    "none a number": np.full(V, np.nan, np.float32),
}
EXTREMES: dict[str, dict[str, float]] = {
    "top_p is 0 in float32": {"top_p": 1e-300},
    "top_p is subnormal": {"top_p": 1e-40},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 2**31 - 1, "top_p": 0.5},
    "cold": {"temperature": 1e-6, "top_p": 0.5},
    "colder than float32": {"temperature": 1e-40, "top_p": 0.5},
    "min_p": {"min_p": 1.0, "top_p": 1e-300},
    "min_p is subnormal": {"min_p": 1e-40, "top_k": 2},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_choosing_ends_whatever_the_numbers_are(extreme: str) -> None:
    """The search is bounded: a hang here once was a hang of the whole server."""
    values: Any = EXTREMES[extreme]
    logits = np.stack(list(EXTREME_LOGITS.values()))
    tokens = np.asarray(choose(logits, sampling(len(logits), seed=5, **values)))
    assert ((tokens >= 0) & (tokens < V)).all()
    chosen = dict(zip(EXTREME_LOGITS, tokens.tolist(), strict=True))
    assert chosen["large"] == chosen["infinite"] == chosen["masked but one"] == 7
    assert chosen["two infinite"] in (7, 9)
    if extreme.startswith("top_p is"):
        assert chosen["plain"] == LOGITS[0].argmax(), "the best token is always kept"


def test_a_tiny_top_p_keeps_the_best_token_alone() -> None:
    logits = np.random.default_rng(4).standard_normal((64, V)).astype(np.float32)
    for top_p in (1e-3, 1e-7, 1e-30):
        tokens = np.asarray(choose(logits, sampling(64, temperature=2.0, top_p=top_p, seed=2)))
        np.testing.assert_array_equal(tokens, logits.argmax(axis=1))


def test_logprobs_are_those_of_a_softmax() -> None:
    logits = 4 * np.random.default_rng(2).standard_normal((3, V)).astype(np.float32)
    tokens = np.array([logits[0].argmax(), logits[1].argmin(), 5], np.int32)
    chosen, rank, best, ids = (np.asarray(x) for x in top_logprobs(logits, tokens, 4))
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    order = np.argsort(-wide, axis=-1)
    np.testing.assert_array_equal(ids, order[:, :4])
    np.testing.assert_allclose(best, np.take_along_axis(expected, order[:, :4], 1), atol=1e-5)
    np.testing.assert_allclose(chosen, expected[np.arange(3), tokens], atol=1e-5)
    assert rank[:2].tolist() == [1, V]
    assert order[2, rank[2] - 1] == 5


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
@settings(max_examples=20, derandomize=True)
@given(seed=st.integers(0, 1000), levels=st.integers(1, 50))
def test_largest_token_is_the_first_of_equals(size: int, seed: int, levels: int) -> None:
    logits = np.random.default_rng(seed).integers(0, levels, (3, size)).astype(np.float32)
    logits[0] = -np.inf
    np.testing.assert_array_equal(largest_token(logits), logits.argmax(-1))


def test_the_largest_token_of_a_broken_model_is_still_a_token() -> None:
    assert 0 <= int(largest_token(np.full((1, 100), np.nan, np.float32))[0]) < 100
