"""Choosing tokens and ranking drafted ones on a GPU: right, and how fast beside what they read.

Of `scripts/gpu_check.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fjx.kernels import mosaic
from fjx.kernels.rank import DraftedRows, drafted_ranks
from fjx.kernels.token_rule import SamplingRows, choose_tokens, gumbel

from .models import MODELS
from .timing import seconds_of

VOCABULARY = 128256
ROWS = (1, 8, 64, 256)
LENS = 8192
"""Tokens that a lens knows, unless it was distilled for others."""
IMPLEMENTATIONS = ("mosaic", "reference")


def lowered() -> Iterator[tuple[str, Callable[[], object]]]:
    """What compiles for CUDA without a GPU; each call raises where it does not."""
    for name, model in MODELS.items():
        terms, vocabulary = model.width, model.vocabulary
        for rows in ROWS:
            choose = partial(choose_tokens, implementation="mosaic")
            given = jax.eval_shape(partial(choices, rows, vocabulary))
            yield f"choose, {name}, {rows} rows", partial(mosaic.lowers, choose, *given)
            for columns in (LENS, vocabulary):
                rank = partial(drafted_ranks, soft_cap=model.logit_cap, implementation="mosaic")
                given = jax.eval_shape(partial(drafts, rows, terms, columns))
                name_of_rank = f"rank, {name}, {columns} tokens, {rows} rows"
                yield name_of_rank, partial(mosaic.lowers, rank, *given)


def checks() -> dict[str, Callable[[], Any]]:
    """What a GPU is to say."""
    return {
        "tokens": tokens_that_differ,
        "ranks": ranks_that_differ,
        "choosing": choosing_times,
        "ranking": ranking_times,
    }


def choices(rows: int, vocabulary: int, seed: int = 0, hot: float = 1.0) -> tuple[Any, ...]:
    """Logits about as wide as a model's, and rows of which this share is not greedy."""
    keys = jax.random.split(jax.random.key(seed), 5)
    logits = 3 * jax.random.normal(keys[0], (rows, vocabulary))
    heat = jax.random.choice(keys[1], jnp.array([0.5, 0.7, 1.0, 1.5]), (rows,))
    heat = jnp.where(jax.random.uniform(keys[2], (rows,)) < hot, heat, 0)
    off = jnp.zeros(rows)
    seeds = jax.random.bits(keys[3], (rows, 2), jnp.uint32)
    position = jax.random.randint(keys[4], (rows,), 0, 100_000)
    return logits, SamplingRows(heat, off.astype(jnp.int32), off + 1, off, seeds, position)


def drafts(rows: int, terms: int, columns: int, seed: int = 0) -> tuple[Any, ...]:
    """Normed rows, an unembedding, its token ids, and drafted tokens, half of the rows greedy."""
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (rows, terms))
    unembed = 3 * terms**-0.5 * jax.random.normal(keys[1], (terms, columns), jnp.bfloat16)
    drafted = jax.random.randint(keys[2], (rows,), 0, columns)
    ids = jnp.arange(columns, dtype=jnp.int32) * 7
    _, sampling = choices(rows, 1, seed, hot=0.5)
    return (
        hidden,
        unembed,
        ids,
        DraftedRows(drafted, sampling.temperature, sampling.seed, sampling.position),
    )


def tokens_that_differ(batches: int = 64, rows: int = 64, vocabulary: int = VOCABULARY) -> Any:
    """Of many random rows, how many get another token than from the reference; and by how much the
    reference's is better, at most, in float64."""
    make = jax.jit(partial(choices, rows, vocabulary, hot=0.8))
    choose = {
        name: jax.jit(partial(choose_tokens, implementation=name)) for name in IMPLEMENTATIONS
    }
    differing, worst = 0, 0.0
    for seed in range(batches):
        logits, sampling = make(seed=seed)
        found, expected = (np.asarray(choose[name](logits, sampling)) for name in IMPLEMENTATIONS)
        for row in np.flatnonzero(found != expected):
            pair = np.array([expected[row], found[row]], np.int32)
            best, chosen = _values(logits, sampling, row, pair)
            worst = max(worst, float(best - chosen))
            differing += 1
    if worst > 1e-4:
        raise AssertionError(f"a token was chosen whose value is {worst} less than the best one's")
    return {"rows": batches * rows, "differing": differing, "largest_gap": worst}


def _values(logits: Any, sampling: SamplingRows, row: int, tokens: np.ndarray) -> np.ndarray:
    """What the rule compares, of some tokens of a row."""
    heat = float(sampling.temperature[row])
    of_tokens = np.asarray(logits[row, tokens], np.float64)
    if heat == 0:
        return of_tokens
    one = slice(row, row + 1)
    noise = gumbel(sampling.seed[one], sampling.position[one], jnp.asarray(tokens))
    return of_tokens / heat + np.asarray(noise[0], np.float64)


def ranks_that_differ(batches: int = 16, rows: int = 64, terms: int = 4096) -> Any:
    """Of many random rows, how many get another rank than from the reference, and how far off."""
    make = jax.jit(partial(drafts, rows, terms, LENS))
    rank = {name: jax.jit(partial(drafted_ranks, implementation=name)) for name in IMPLEMENTATIONS}
    off = []
    for seed in range(batches):
        given = make(seed=seed)
        found, expected = (np.asarray(rank[name](*given)) for name in IMPLEMENTATIONS)
        off.append(np.abs(found - expected))
    if np.max(off) > 5:
        raise AssertionError(f"a rank is off by {np.max(off)}")
    return {
        "rows": batches * rows,
        "differing": int(np.count_nonzero(off)),
        "most": int(np.max(off)),
    }


def choosing_times() -> list[dict[str, Any]]:
    """Beside the time of reading the logits once, at the bandwidth of a copy."""
    bandwidth = _bandwidth()
    found = []
    for rows in ROWS:
        for hot in (0.0, 1.0):
            given = jax.jit(partial(choices, rows, VOCABULARY, hot=hot))()
            times = _times(choose_tokens, given, given[0].nbytes / bandwidth)
            found.append({"rows": rows, "sampled": bool(hot)} | times)
    return found


def ranking_times() -> list[dict[str, Any]]:
    """Beside the time of reading the unembedding once, at the bandwidth of a copy."""
    bandwidth, terms = _bandwidth(), MODELS["Llama 3.1 8B"].width
    found = []
    for columns in (LENS, VOCABULARY):
        for rows in ROWS:
            given = jax.jit(partial(drafts, rows, terms, columns))()
            times = _times(drafted_ranks, given, given[1].nbytes / bandwidth)
            found.append({"rows": rows, "tokens": columns} | times)
    return found


def _times(run: Callable[..., Any], given: tuple[Any, ...], least: float) -> dict[str, float]:
    """Of both implementations, in microseconds."""
    times = {"least_microseconds": 1e6 * least}
    for name in IMPLEMENTATIONS:
        seconds = seconds_of(jax.jit(partial(run, implementation=name)), given)
        times[f"{name}_microseconds"] = 1e6 * seconds
    times["share_of_the_limit"] = 1e6 * least / times["mosaic_microseconds"]
    return times


def _bandwidth() -> float:
    """Bytes a second of reading and writing two gigabytes."""
    x = jnp.zeros(2**30, jnp.bfloat16)
    return 2 * x.nbytes / seconds_of(jax.jit(lambda x: x + 1), (x,))
