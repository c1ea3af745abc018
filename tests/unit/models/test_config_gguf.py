"""GGUF keys that change logits, with llama.cpp's defaults and precedence."""

from __future__ import annotations

from typing import Any

import pytest

from fjx.errors import ModelError
from fjx.models.config import ModelConfig

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
SIZES: dict[str, Any] = {
    "context_length": 128,
    "embedding_length": 64,
    "block_count": 4,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "vocab_size": 96,
}
PLAIN, QUARTER = 0.316228, 0.079057
"""The second frequency of a head of 16 at the default base of 10,000, and a quarter of it."""


def read(architecture: str, **keys: Any) -> ModelConfig:
    """Keys without their prefix, dots as double underscores."""
    given = {name.replace("__", "."): value for name, value in keys.items()}
    values = {f"{architecture}.{name}": value for name, value in {**SIZES, **given}.items()}
    return ModelConfig.from_gguf({"general.architecture": architecture, **values}, tensor_names=())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("keys", "second"),
    [
        ({}, PLAIN),
        ({"rope.scaling.factor": 4.0}, QUARTER),  # no type means linear
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, QUARTER),
        ({"rope.scale_linear": 4.0}, QUARTER),  # the old key
        ({"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}, QUARTER),  # the new one wins
        ({"rope.scaling.type": "linear", "rope.scale_linear": 4.0}, QUARTER),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 0.0}, PLAIN),  # 0 means none
        ({"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0}, PLAIN),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, PLAIN),
        ({"rope.scaling.type": "linear"}, PLAIN),
    ],
)
def test_rope_scaling(architecture: str, keys: dict[str, Any], second: float) -> None:
    config = read(architecture, **keys)
    assert config.head_dim == 16
    assert config.rope_tables[0][1] == pytest.approx(second, rel=1e-4)
    if architecture == "gemma3":
        assert config.rope_tables[1][1] == pytest.approx(PLAIN, rel=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unknown_rope_scaling_is_refused(architecture: str) -> None:
    with pytest.raises(ModelError, match="'yarn', which is not supported"):
        read(architecture, rope__scaling__type="yarn", rope__scaling__factor=4.0)
    with pytest.raises(ModelError, match=r"the factor is -1\.0"):
        read(architecture, rope__scaling__factor=-1.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_factors_of_attention(architecture: str) -> None:
    plain = read(architecture).attention_scale
    assert plain == 0.25
    # On the cosines and sines of queries and of keys.
    assert read(architecture, rope__scaling__attn_factor=2.0).attention_scale == 4 * plain
    assert read(architecture, attention__scale=0.5).attention_scale == 0.5
    assert read(architecture, attention__scale=0.0).attention_scale == plain


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_soft_caps(architecture: str) -> None:
    capped = read(architecture, final_logit_softcapping=30.0, attn_logit_softcapping=50.0)
    assert (capped.logit_soft_cap, capped.attention_soft_cap) == (30.0, 50.0)
    off = read(architecture, final_logit_softcapping=0.0, attn_logit_softcapping=0.0)
    assert (off.logit_soft_cap, off.attention_soft_cap) == (None, None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_that_are_given_for_each_layer(architecture: str) -> None:
    keys = {"attention.head_count": [4] * 4, "attention.head_count_kv": [2] * 4}
    config = read(architecture, **keys, feed_forward_length=[96] * 4)
    assert (config.num_heads, config.num_kv_heads, config.mlp_width) == (4, 2, 96)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_changes_nothing_is_no_reason_to_refuse(architecture: str) -> None:
    config = read(
        architecture,
        expert_count=0,
        expert_used_count=0,
        logit_scale=0.0,
        residual_scale=1.0,
        use_parallel_residual=False,
        pooling_type=3,
        tensor_data_layout="Meta AI original pth",
        **{
            "attention.causal": True,
            "attention.key_length": 16,
            "attention.value_length": 16,
            "attention.layer_norm_epsilon": 1e-6,
            "rope.dimension_count": 16,
            "rope.scaling.finetuned": False,
            "rope.scaling.original_context_length": 64,
            "swiglu_clamp_exp": [0.0] * 4,
        },
    )
    assert config == read(architecture)


def test_windows() -> None:
    window = {"attention.sliding_window": 8}
    every_second = {**window, "attention.sliding_window_pattern": 2}
    by_layer = {**window, "attention.sliding_window_pattern": [True, True, False, True]}
    assert read("llama").window_of_layer == ()
    assert read("llama", attention__sliding_window=0).window_of_layer == ()
    assert read("llama", **window).window_of_layer == (8, 8, 8, 8)
    assert read("llama", **by_layer).window_of_layer == (8, 8, 0, 8)
    assert read("gemma3").window_of_layer == ()
    assert read("gemma3", attention__sliding_window=0).rope_of_layer == ()
    assert read("gemma3", **window, block_count=6).window_of_layer == (8, 8, 8, 8, 8, 0)
    assert read("gemma3", **every_second).window_of_layer == (8, 0, 8, 0)
    assert read("gemma3", **every_second).rope_of_layer == (1, 0, 1, 0)
    assert read("gemma3", **by_layer).window_of_layer == (8, 8, 0, 8)
    with pytest.raises(ModelError, match="sliding_window_pattern' should say for each of 4 layer"):
        read("gemma3", **{**window, "attention.sliding_window_pattern": [True]})


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_a_window_of_unnamed_layers_is_refused_if_a_context_outgrows_it(architecture: str) -> None:
    assert read(architecture, attention__sliding_window=128) == read(architecture)
    with pytest.raises(ModelError, match=r"attention\.sliding_window = 64 is not supported"):
        read(architecture, attention__sliding_window=64)


def test_gemma3_defaults_are_those_of_llama_cpp() -> None:
    config = read("gemma3", rope__freq_base_swa=100.0, attention__sliding_window=8)
    assert config.rope_tables[0][1] == pytest.approx(PLAIN, rel=1e-4)
    assert config.rope_tables[1][1] == pytest.approx(100.0**-0.125)
    assert config.head_dim == 16
