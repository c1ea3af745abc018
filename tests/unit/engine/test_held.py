"""What an engine says that it holds is what it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pytest

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.loading import make_programs
from fjx.models.config import ModelConfig
from fjx.models.tensors import random_tensors
from fjx.pipeline.bound_mesh import live_devices
from fjx.pipeline.held_bytes import parameter_bytes
from fjx.pipeline.placed_model import Loader, PlacedModel
from fjx.sampling_params import SamplingParams
from fjx.sharding.plan.plan import Plan
from tests.unit.engine.plan_cases import deep_engine, even
from tests.unit.engine.tiny import HF_CONFIG, run, staged

TIED = ModelConfig.from_hf({**HF_CONFIG, "tie_word_embeddings": True})


def bytes_of(arrays: Iterable[Any]) -> int:
    """Of different arrays."""
    return sum({id(array): array.nbytes for array in arrays}.values())


def parameters_of(pieces: PlacedModel) -> int:
    pages = {id(granule.kv_pages) for granule in pieces.granules}
    return bytes_of(array for array in pieces.arrays() if id(array) not in pages)


def test_an_engine_tells_what_it_holds_by_kind() -> None:
    engine: Engine = deep_engine(num_pages=33)
    pieces = engine.executor.pieces  # type: ignore[attr-defined]
    held = engine.memory()
    assert held.parameters == parameters_of(pieces)
    assert held.kv_bytes == sum(granule.kv_pages.nbytes for granule in pieces.granules)
    assert held.kv_tokens == 32 * 16
    assert (held.draft_parameters, held.draft_kv_bytes) == (0, 0)
    assert held.programs == engine.executor.compiler.num_programs


def test_pages_count_as_used_from_their_first_request_on() -> None:
    engine: Engine = deep_engine(num_pages=37)
    before = engine.memory()
    assert before.kv_used_bytes == round(before.kv_bytes / 37)  # page 0
    engine.add("a", list(range(30)), SamplingParams(temperature=0, max_tokens=1))
    run(engine)
    after = engine.memory()
    assert after.kv_used_bytes == round(3 * before.kv_bytes / 37)
    assert dataclasses.replace(after, kv_used_bytes=before.kv_used_bytes, programs=0) == (
        dataclasses.replace(before, programs=0)
    )


@pytest.mark.parametrize("plan", [staged((2, (0,))), staged((1, (0,)), (1, (1,)))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_embedding_lies_there_once_where_both_ends_are_in_one_place(
    plan: Plan, dtype: str
) -> None:
    config = EngineConfig(
        max_num_seqs=2, max_num_batched_tokens=4, dtype=dtype, kv_cache_tokens=64, granule_layers=2
    )
    programs = make_programs(config, TIED)
    loader = Loader(programs, plan, live_devices())
    for name, values in random_tensors(TIED, seed=1):
        loader.take(name, values)
    pieces = loader.pieces()
    table, matrix = pieces.embed.params["tokens"], pieces.head.params["unembed"]
    packed = table.ndim == 4
    assert (table is matrix) == (packed and len(plan.stages) == 1)
    assert parameter_bytes(programs, plan) == parameters_of(pieces)
    assert jax.tree.structure(pieces.head.params) == jax.tree.structure(programs.params("head", 1))
    if packed:
        np.testing.assert_array_equal(np.asarray(table), np.asarray(matrix))


def test_each_replica_holds_its_own() -> None:
    one = deep_engine(num_pages=33).memory()
    two = deep_engine(even(1), even(1, first_device=1), num_pages=33).memory()
    assert (two.parameters, two.kv_bytes) == (2 * one.parameters, 2 * one.kv_bytes)
    assert two.kv_tokens == one.kv_tokens
