"""A quantized model is another model; its tokens depend on as little as any model's."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fjx.config import EngineConfig
from fjx.engine.loading import make_programs
from fjx.errors import UserError
from fjx.kernels.matmul import Quantization
from fjx.models.config import ModelConfig
from fjx.models.granules import Model
from fjx.models.tensors import random_tensors
from fjx.pipeline.bound_mesh import live_devices
from fjx.pipeline.placed_model import Loader
from fjx.pipeline.programs import Programs
from fjx.sampling_params import SamplingParams
from fjx.sharding.costs.difference import difference
from fjx.speculation.policy.frontiers import FrontierDepth
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.plan_cases import (
    MIXED,
    PLAIN_TARGETS,
    TENSOR_TARGETS,
    Ask,
    answers,
    change,
    deep_engine,
    even,
    expected,
    is_near_tie,
    serve_through,
)
from tests.unit.engine.tiny import HF_CONFIG, one_stage, tiny_engine
from tests.unit.speculation.runtime.draft_cases import Guesses

KINDS: list[Quantization] = ["int8", "fp8"]
LONG = tuple(Ask(a.prompt, replace(a.params, max_tokens=40, min_tokens=40)) for a in MIXED)
GREEDY = tuple(
    Ask(a.prompt, SamplingParams(temperature=0, max_tokens=40, min_tokens=40, logprobs=2))
    for a in MIXED
)


def test_the_quantized_model_is_another_one() -> None:
    asked = {
        kind: [expected(ask, quantization=kind).tokens for ask in MIXED] for kind in (None, *KINDS)
    }
    assert asked[None] != asked["int8"] != asked["fp8"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", [even(4, microbatches=2), even(8)], ids=["4 stages", "8 stages"])
def test_tokens_depend_on_no_stage_and_no_batch(plan: Any, kind: Quantization, dtype: str) -> None:
    engine = deep_engine(plan, dtype=dtype, quantization=kind)
    for ask, got in zip(MIXED, answers(engine, MIXED), strict=True):
        assert got == expected(ask, dtype, quantization=kind), ask
    engine.check_idle()


@pytest.mark.parametrize("kind", KINDS)
def test_nor_on_speculation(kind: Quantization) -> None:
    engine = deep_engine(quantization=kind, max_draft_rows=20)
    buckets = engine.executor.limits.row_buckets
    drafter = Guesses(random.Random(0), error_rate=0.3)
    drafter.known = {f"{i}": expected(ask, quantization=kind).tokens for i, ask in enumerate(LONG)}
    engine.speculator = Speculator(drafter, Fixed(3), buckets, FrontierDepth(1, 1))
    for ask, got in zip(LONG, answers(engine, LONG), strict=True):
        assert got.tokens == expected(ask, quantization=kind).tokens, ask
    stats = engine.stats().speculation
    assert stats is not None
    assert stats.num_draft_tokens > stats.num_accepted_tokens > 20
    engine.check_idle()


@pytest.mark.parametrize("kind", KINDS)
def test_nor_on_changes_of_the_plan_under_load(kind: Quantization) -> None:
    engine = deep_engine(num_pages=33, quantization=kind)
    targets = [8, PLAIN_TARGETS["another device"], 2, PLAIN_TARGETS["1 stage"]]
    got, _ = serve_through(engine, LONG, targets, steps_apart=1)
    for ask, answer in zip(LONG, got, strict=True):
        assert answer == expected(ask, quantization=kind), ask


@pytest.mark.parametrize("kind", KINDS)
def test_another_tensor_degree_keeps_tokens_but_for_near_ties_and_moves_the_planned_bytes(
    kind: Quantization,
) -> None:
    engine = deep_engine(num_pages=33, quantization=kind)
    targets = [TENSOR_TARGETS["tensor 2"], TENSOR_TARGETS["tensor 1, then tensor 2"]]
    got, _ = serve_through(engine, GREEDY, targets)
    ties = [
        is_near_tie(ask, answer.tokens, quantization=kind)
        for ask, answer in zip(GREEDY, got, strict=True)
    ]
    assert sum(ties) <= len(ties) // 4
    before = engine.plans.deployment
    record = change(engine, TENSOR_TARGETS["1 stage"])
    planned = difference(before, record.after, engine.plans.planner.graph)
    assert record.parameter_bytes == planned.parameter_bytes > 0
    # Split and joined again, nothing was rounded a second time.
    for ask, answer in zip(MIXED, answers(engine, MIXED), strict=True):
        assert answer == expected(ask, quantization=kind), ask


@pytest.mark.parametrize("kind", KINDS)
def test_only_matrices_of_blocks_are_narrow(kind: Quantization) -> None:
    pieces = tiny_engine("bfloat16", quantization=kind).executor.pieces
    narrow = [
        sum(leaf.dtype.itemsize == 1 for leaf in jax.tree.leaves(params))
        for params in (pieces.embed.params, pieces.granules[0].params, pieces.head.params)
    ]
    assert narrow == [0, 2 * 4, 0]  # two layers of four matrices


def test_loading_never_holds_more_than_a_piece_of_the_wide_model() -> None:
    wide = {**HF_CONFIG, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
    config = replace(ModelConfig.from_hf(wide), quantization="int8")
    tensors = {name: values.nbytes for name, values in random_tensors(config, seed=0)}
    limits = tiny_engine().executor.limits
    programs = Programs(Model(config, 1), limits, jnp.dtype(jnp.float32))
    loader = Loader(programs, one_stage(8).replicas[0], live_devices())
    tracemalloc.start()
    for name, values in random_tensors(config, seed=0):
        loader.take(name, values)
        del values
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loader.pieces().granules
    assert peak < sum(tensors.values()) / 4 + 5 * max(tensors.values())


def test_a_dtype_that_cannot_be_multiplied_with_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = EngineConfig(quantization="int8", dtype="float32")
    with pytest.raises(UserError, match=r"quantization int8 .* dtype float32 .* leave out"):
        make_programs(config, ModelConfig.from_hf(HF_CONFIG))


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(UserError, match="quantization must be int8 or fp8, got 'int4'"):
        EngineConfig(quantization="int4")  # type: ignore[arg-type]
