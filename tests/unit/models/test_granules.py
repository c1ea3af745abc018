"""Cutting a model, the two layouts of its parameters, and what a row's result may depend on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.ragged import RaggedRows
from fjx.models.config import ModelConfig
from fjx.models.granules import Model, cut
from fjx.models.registry import FAMILIES
from fjx.models.rope import frequencies
from fjx.models.tensors import canonical_shapes, canonical_tensors, random_tensors

BASE = ModelConfig(
    family="llama",
    vocab_size=40,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=48,
    max_positions=64,
    norm_eps=1e-5,
    tied_embeddings=True,
    attention_scale=8**-0.5,
    rope_tables=(frequencies(8, 1e4),),
)
GEMMA3 = dataclasses.replace(
    BASE,
    family="gemma3",
    activation="gelu_tanh",
    qk_norm=True,
    embed_scale=32**0.5,
    rope_tables=(frequencies(8, 1e6), frequencies(8, 1e4)),
    rope_of_layer=(1, 0, 1),
    window_of_layer=(3, 0, 3),
    logit_soft_cap=30.0,
)
OPT = dataclasses.replace(
    BASE,
    family="opt",
    num_kv_heads=4,
    activation="relu",
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    rope_tables=(),
)
CONFIGS = {"llama": BASE, "gemma3": GEMMA3, "opt": OPT}
COUNTS = (7, 4)  # rows of each request in the one step that these tests run, and one row of padding
TOKENS = np.random.default_rng(0).integers(0, 40, 12).astype(np.int32)


def ragged_rows() -> RaggedRows:
    positions = [*range(COUNTS[0]), *range(COUNTS[1]), 0]
    request_of = [0] * COUNTS[0] + [1] * COUNTS[1] + [-1]
    arrays = (positions, request_of, [0, 7, 11], COUNTS, [[3, 1], [0, 2]])
    return RaggedRows(*(jnp.array(array, jnp.int32) for array in arrays))


def tensors_of(config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> dict[str, jax.Array]:
    specs = canonical_tensors(config)
    return {
        name: jax.tree.map(jnp.asarray, specs[name].store(array, dtype))
        for name, array in random_tensors(config, seed=1, scale=0.3)
    }


@functools.cache
def forward(
    config: ModelConfig, granule_layers: int, dtype: jnp.dtype
) -> Callable[[jax.Array], jax.Array]:
    model, tensors, rows = Model(config, granule_layers), tensors_of(config, dtype), ragged_rows()
    granules = [model.pack_granule(index, tensors) for index in range(len(model.granules))]
    params = (model.pack_embed(tensors), granules, model.pack_head(tensors))

    @jax.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        embed, granules, head = params
        x = model.embed(embed, tokens, rows)
        for granule, layers in zip(granules, model.granules, strict=True):
            shape = kv_pages_shape(len(layers), 4, 4, config.num_kv_heads, config.head_dim)
            x, _ = model.granule(granule, x, jnp.zeros(shape, kv_storage_dtype(dtype)), rows)
        return model.head(head, x)

    return functools.partial(run, params)


def logits_of(
    config: ModelConfig,
    tokens: np.ndarray = TOKENS,
    *,
    granule_layers: int = 3,
    dtype: jnp.dtype = jnp.float32,
) -> np.ndarray:
    return np.asarray(forward(config, granule_layers, dtype)(jnp.asarray(tokens)))


@pytest.fixture(params=sorted(CONFIGS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


def test_default_cut_is_about_eight_granules_of_equal_depth() -> None:
    layers = cut(dataclasses.replace(BASE, num_layers=32), None)
    assert layers == tuple(range(start, start + 4) for start in range(0, 32, 4))


@pytest.mark.parametrize("num_layers", [1, 5, 12, 30])
@pytest.mark.parametrize("granule_layers", [None, 1, 4, 100])
def test_cut_covers_every_layer_once_and_only_the_last_is_shorter(
    num_layers: int, granule_layers: int | None
) -> None:
    granules = cut(dataclasses.replace(BASE, num_layers=num_layers), granule_layers)
    assert [layer for granule in granules for layer in granule] == list(range(num_layers))
    assert {len(granule) for granule in granules[:-1]} <= {len(granules[0])}
    assert len(granules[-1]) <= len(granules[0])


def test_cut_does_not_change_the_logits(config: ModelConfig) -> None:
    whole, pieces = logits_of(config), logits_of(config, granule_layers=1)
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-6 * np.abs(whole).max())


def test_a_row_does_not_depend_on_other_requests_or_padding(config: ModelConfig) -> None:
    changed = TOKENS.copy()
    changed[COUNTS[0] :] = (changed[COUNTS[0] :] + 1) % 40
    before, after = logits_of(config), logits_of(config, changed)
    np.testing.assert_array_equal(before[: COUNTS[0]], after[: COUNTS[0]])
    assert (before[COUNTS[0] : -1] != after[COUNTS[0] : -1]).any()


def test_granules_of_equal_depth_are_one_program(config: ModelConfig) -> None:
    model, tensors, rows = Model(config, granule_layers=1), tensors_of(config), ragged_rows()
    shape = kv_pages_shape(1, 4, 4, config.num_kv_heads, config.head_dim)
    programs = {
        str(
            jax.make_jaxpr(model.granule)(
                model.pack_granule(index, tensors),
                jnp.zeros((12, 32)),
                jnp.zeros(shape),
                rows,
            )
        )
        for index in range(len(model.granules))
    }
    assert len(programs) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_abstract_parameters_are_those_that_packing_gives(
    config: ModelConfig, dtype: jnp.dtype
) -> None:
    model, tensors = Model(config, granule_layers=2), tensors_of(config, dtype)
    pairs = [
        (model.abstract_embed(dtype), model.pack_embed(tensors)),
        (model.abstract_head(dtype), model.pack_head(tensors)),
    ]
    for index in range(len(model.granules)):
        packed = model.pack_granule(index, tensors)
        pairs.append((model.abstract_granule(index, dtype), packed))
    for abstract, packed in pairs:
        same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), abstract, packed)
        assert all(jax.tree.leaves(same))


def test_bfloat16_weights_give_nearly_the_same_logits(config: ModelConfig) -> None:
    exact, rounded = logits_of(config), logits_of(config, dtype=jnp.bfloat16)
    assert rounded.dtype == np.float32
    assert np.abs(rounded - exact)[:-1].max() < 0.05 * np.abs(exact).max()


def test_pieces_share_out_every_canonical_tensor_once(config: ModelConfig) -> None:
    model = Model(config, granule_layers=2)
    names = [*model.embed_tensors(), *model.head_tensors()]
    for index in range(len(model.granules)):
        names += model.granule_tensors(index)
    assert sorted(names) == sorted(canonical_shapes(config))


def test_random_model_is_reproducible_and_tied(config: ModelConfig) -> None:
    first, again = dict(random_tensors(config, seed=5)), dict(random_tensors(config, seed=5))
    other = dict(random_tensors(config, seed=6))
    assert {name: array.shape for name, array in first.items()} == canonical_shapes(config)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        assert (array != other[name]).any()
    np.testing.assert_array_equal(first["head.unembed"], first["embed.tokens"].T)


def test_matrices_name_the_axes_that_tensor_parallelism_splits() -> None:
    axes = {name: spec.axes for name, spec in canonical_tensors(BASE).items()}
    assert axes["embed.tokens"] == ("vocab", "embed")
    assert axes["layers.2.qkv"] == ("embed", "heads")
    assert axes["layers.2.o"] == ("heads", "embed")
    assert axes["layers.2.gate_up"] == ("embed", "mlp")
    assert axes["layers.2.down"] == ("mlp", "embed")
    assert axes["head.unembed"] == ("embed", "vocab")


def test_every_family_can_be_built() -> None:
    for family in FAMILIES:
        shapes = canonical_shapes(dataclasses.replace(BASE, family=family))
        assert shapes["layers.0.qkv"] == (32, 64)
