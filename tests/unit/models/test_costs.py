"""The costs of real models: bytes that are those of the arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.matmul import Quantization
from fjx.models.config import ModelConfig
from fjx.models.costs import model_graph
from fjx.models.granules import Model
from fjx.models.tensors import canonical_tensors, random_tensors
from fjx.sharding.costs.analytic import DeviceFigures
from tests.accuracy.golden_models import CONFIGS
from tests.unit.engine.tiny import HF_CONFIG
from tests.unit.models.test_config import GEMMA3_4B, OPT_125M, SMOLLM2_135M

MODELS: dict[str, dict[str, Any]] = {**CONFIGS, "tiny": HF_CONFIG}
BUCKETS = (2, 8)
FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


@pytest.mark.parametrize("quantization", [None, "int8", "fp8"])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_parameter_bytes_of_each_piece_are_those_of_its_arrays(
    name: str, dtype: jnp.dtype, quantization: Quantization | None
) -> None:
    config = replace(ModelConfig.from_hf(MODELS[name]), quantization=quantization)
    model, specs = Model(config, 3), canonical_tensors(config)
    tensors = {
        name: jax.tree.map(jnp.asarray, specs[name].store(values, dtype))
        for name, values in random_tensors(config, seed=0)
    }
    pieces: list[Any] = [model.pack_embed(tensors)]
    for index in range(len(model.granules)):
        pieces.append(model.pack_granule(index, tensors))
    pieces.append(model.pack_head(tensors))
    graph = model_graph(config, dtype, 3, BUCKETS)
    assert [granule.layers for granule in graph.granules] == [3, 1]
    expected = [sum(array.nbytes for array in jax.tree.leaves(piece)) for piece in pieces]
    assert [piece.parameter_bytes() for _, piece in graph.pieces()] == expected


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_kv_bytes_are_those_of_the_pages(name: str, dtype: jnp.dtype) -> None:
    config = ModelConfig.from_hf(MODELS[name])
    pages = kv_pages_shape(2, 1, 16, config.num_kv_heads, config.head_dim)
    expected = jax.eval_shape(lambda: jnp.zeros(pages, kv_storage_dtype(dtype)))
    granule = model_graph(config, dtype, 2, BUCKETS).granules[0]
    assert granule.kv_bytes(tokens=16) == expected.size * expected.dtype.itemsize


def test_a_quantized_block_is_read_in_half_the_time_that_one_in_bfloat16_takes() -> None:
    config = ModelConfig.from_hf(SMOLLM2_135M)
    wide, narrow = (
        model_graph(replace(config, quantization=quantization), BFLOAT16, 30, (1,))
        for quantization in (None, "int8")
    )
    (before,), (after,) = wide.granules, narrow.granules
    assert after.parameter_bytes() == pytest.approx(before.parameter_bytes() / 2, rel=0.02)
    assert after.seconds_at(0, 1) == pytest.approx(before.seconds_at(0, 1) / 2, rel=0.1)
    assert narrow.head == wide.head
    assert narrow.embed == wide.embed


def test_norms_biases_of_the_residual_stream_and_positions_are_not_split() -> None:
    config = ModelConfig.from_hf(CONFIGS["opt"])
    graph = model_graph(config, FLOAT32, 1, BUCKETS)
    D, positions = config.hidden_size, config.max_positions + 2
    assert graph.embed.whole_parameter_bytes == 4 * positions * D
    # Two layer norms of a weight and a bias, and the biases of two products into the residual.
    assert graph.granules[0].whole_parameter_bytes == 4 * (2 * 2 * D + 2 * D)
    assert graph.head.whole_parameter_bytes == 4 * 2 * D


def test_tensor_degrees_are_checked_by_the_sizes_that_they_divide() -> None:
    graph = model_graph(ModelConfig.from_hf(SMOLLM2_135M), BFLOAT16, None, BUCKETS, name="smol")
    assert dict(graph.split_sizes) == {
        "query heads": 9,
        "KV heads": 3,
        "MLP width": 1536,
        "vocabulary": 49152,
    }
    assert graph.model == "smol"
    assert graph.num_layers == 30


@pytest.mark.parametrize(
    ("hf", "matrices"), [(SMOLLM2_135M, 3), (GEMMA3_4B, 3), (OPT_125M, 2)], ids=str
)
def test_arithmetic_follows_the_matrices_of_the_mlp(hf: dict[str, Any], matrices: int) -> None:
    config = ModelConfig.from_hf(hf)
    no_traffic = DeviceFigures(flops_per_second=1.0, memory_bytes_per_second=float("inf"))
    graph = model_graph(config, BFLOAT16, 1, (1,), device=no_traffic)
    D, heads = config.hidden_size, config.head_dim * (config.num_heads + config.num_kv_heads)
    products = 2 * (2 * D * heads + matrices * D * config.mlp_width)
    attention = 4 * config.num_heads * config.head_dim * 512
    assert graph.granules[0].seconds_at(0) == products + attention
