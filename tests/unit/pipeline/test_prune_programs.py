"""Ranks of drafted tokens, and where steps are looked at."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fjx.kernels.token_rule import SamplingRows, choose_tokens
from fjx.pipeline.placement import bind, live_devices
from fjx.pipeline.programs import StageShape
from fjx.pipeline.prune_programs import LensRows, drafted_ranks, segments_of
from tests.unit.engine.tiny import cpus


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
    rank = jax.jit(drafted_ranks)

    def chosen(logits: np.ndarray) -> np.ndarray:
        sampling = SamplingRows(heat, none, off + 1, off, seed, position)  # type: ignore[arg-type]
        return np.asarray(by_the_rule(logits, sampling))

    ids = np.arange(vocabulary, dtype=np.int32)
    best = LensRows(chosen(logits), heat, seed, position)
    assert rank(logits, ids, best).tolist() == [0] * rows
    # Some tokens of the vocabulary, in another order: they keep their noise.
    some = draw.permutation(vocabulary)[:50].astype(np.int32)
    drafted = draw.integers(0, 50, rows).astype(np.int32)
    preferred = np.zeros(rows, int)
    for other in some:
        pair = np.full((rows, vocabulary), -1e9, np.float32)
        pair[:, other] = logits[:, other]
        pair[np.arange(rows), some[drafted]] = logits[np.arange(rows), some[drafted]]
        preferred += chosen(pair) != some[drafted]
    got = rank(logits[:, some], some, LensRows(drafted, heat, seed, position))
    assert got.tolist() == preferred.tolist()


def test_a_single_stage_is_looked_at_late_and_several_between_them() -> None:
    at = bind(cpus(0), live_devices())

    def shape(start: int, stop: int, first: bool = True, last: bool = True) -> StageShape:
        return StageShape(at, range(start, stop), first, last)

    assert segments_of([shape(0, 10)]) == (shape(0, 8, last=False), shape(8, 10, first=False))
    assert segments_of([shape(0, 2)]) == (shape(0, 1, last=False), shape(1, 2, first=False))
    assert segments_of([shape(0, 1)]) == (shape(0, 1),)
    stages = shape(0, 4, last=False), shape(4, 8, first=False)
    assert segments_of(stages) == stages
