"""The shared layers and RoPE, each against its definition."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fjx.kernels.attention.rotation import rotate
from fjx.models import rope
from fjx.models.config import ModelConfig
from fjx.models.layers import GatedMlp, LayerNorm, Linear, RMSNorm
from fjx.models.split import SplitModule


def with_arrays(module: nnx.Module, **params: np.ndarray) -> nnx.Module:
    return SplitModule(module).merge({name: jnp.asarray(value) for name, value in params.items()})


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    x, weight = normal(3, 8), normal(8)
    holder = nnx.Module()
    holder.norm = RMSNorm(8, eps=1e-3)
    norm = with_arrays(holder, norm=weight).norm
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * weight
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5)


def test_layer_norm_centres_and_scales() -> None:
    x, weight, bias = normal(3, 8), normal(8), normal(2, 8)[0]
    holder = nnx.Module()
    holder.norm = LayerNorm(8, eps=1e-3)
    norm = with_arrays(holder, norm=weight, norm_bias=bias).norm
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected * weight + bias, rtol=1e-4, atol=1e-6)


def test_bfloat16_products_are_summed_in_float32() -> None:
    # A bfloat16 sum of 4,096 ones would stop at 256.
    holder = nnx.Module()
    holder.ones = Linear(4096, 2, ("embed", "mlp"))
    linear = SplitModule(holder).merge({"ones": jnp.ones((4096, 2), jnp.bfloat16)}).ones
    y = linear(jnp.ones((2, 4096)))
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, np.full((2, 2), 4096.0))


def test_gated_mlp_gates_with_the_first_half() -> None:
    config = ModelConfig.from_hf(
        {
            "model_type": "llama",
            "vocab_size": 8,
            "hidden_size": 4,
            "intermediate_size": 6,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "max_position_embeddings": 8,
        }
    )
    x, gate, up, down = normal(3, 4), normal(4, 6), normal(4, 6) + 1, normal(6, 4)
    mlp = with_arrays(GatedMlp(config), gate_up=np.concatenate([gate, up], 1), down=down)
    gated = x @ gate
    expected = (gated / (1 + np.exp(-gated)) * (x @ up)) @ down
    np.testing.assert_allclose(mlp(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


def test_rope_makes_attention_depend_on_distance_alone() -> None:
    q, k = normal(1, 2, 16), normal(1, 2, 16) + 1
    tables = (rope.frequencies(16, theta=1e4),)

    def rotated(x: np.ndarray, position: int) -> np.ndarray:
        cos, sin = rope.cos_sin(tables, jnp.array([position]))
        return np.asarray(rotate(jnp.asarray(x), (cos[0], sin[0])))

    near = (rotated(q, 9) * rotated(k, 4)).sum(-1)
    far = (rotated(q, 105) * rotated(k, 100)).sum(-1)
    np.testing.assert_allclose(near, far, rtol=1e-3)
    assert not np.allclose(near, (rotated(q, 9) * rotated(k, 5)).sum(-1), rtol=1e-3)


def test_rope_pairs_the_two_halves_of_a_head() -> None:
    # At position 1, the first pair turns by one radian: elements 0 and 8 of 16.
    x = np.zeros((1, 1, 16), np.float32)
    x[0, 0, 0] = 1
    cos, sin = rope.cos_sin((rope.frequencies(16, theta=1e4),), jnp.array([1]))
    turned = np.asarray(rotate(jnp.asarray(x), (cos[0], sin[0])))[0, 0]
    assert turned[0] == pytest.approx(np.cos(1), abs=1e-6)
    assert turned[8] == pytest.approx(np.sin(1), abs=1e-6)
    assert np.count_nonzero(turned) == 2
