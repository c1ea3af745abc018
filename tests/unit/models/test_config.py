"""Reading a model's configuration from config.json and from GGUF key/values."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from fjx.errors import ModelError
from fjx.models.config import ModelConfig

# As published, without what does not concern inference.
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
SMOLLM2_135M_GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": np.uint32(9),
    "llama.attention.head_count_kv": np.uint32(3),
    "llama.rope.freq_base": 100000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-05,
    "llama.vocab_size": 49152,
    "llama.rope.dimension_count": 64,
}
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}
OPT_125M = {
    "architectures": ["OPTForCausalLM"],
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "ffn_dim": 3072,
    "hidden_size": 768,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 50272,
    "word_embed_proj_dim": 768,
}


def test_gguf_and_hugging_face_files_of_one_model_read_the_same() -> None:
    from_gguf = ModelConfig.from_gguf(SMOLLM2_135M_GGUF, tensor_names={"token_embd.weight"})
    assert from_gguf == ModelConfig.from_hf(SMOLLM2_135M)


def test_gguf_with_an_output_matrix_is_untied() -> None:
    config = ModelConfig.from_gguf(SMOLLM2_135M_GGUF, tensor_names={"output.weight"})
    assert not config.tied_embeddings


def test_gguf_vocabulary_is_the_token_list() -> None:
    header: dict[str, Any] = {**SMOLLM2_135M_GGUF, "tokenizer.ggml.tokens": ["a", "b", "c"]}
    del header["llama.vocab_size"]
    assert ModelConfig.from_gguf(header, tensor_names=()).vocab_size == 3


def test_gguf_rope_factors_divide_the_frequencies() -> None:
    plain = ModelConfig.from_gguf(SMOLLM2_135M_GGUF, tensor_names=())
    names = {"rope_freqs.weight"}
    divided = ModelConfig.from_gguf(SMOLLM2_135M_GGUF, names, rope_factors=[1.0] * 30 + [8.0] * 2)
    assert divided.rope_tables[0][:30] == plain.rope_tables[0][:30]
    assert divided.rope_tables[0][31] == plain.rope_tables[0][31] / 8
    with pytest.raises(ModelError, match=r"rope_freqs\.weight should hold 32 values"):
        ModelConfig.from_gguf(SMOLLM2_135M_GGUF, names, rope_factors=[1.0])


def test_llama3_scaling_agrees_with_the_factors_in_gguf_files() -> None:
    # Llama 3.1 8B; its GGUF files hold 1.0 for short wavelengths, 8.0 for long ones.
    scaling = {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    base = {**SMOLLM2_135M, **sizes, "rope_theta": 500000.0}
    plain = ModelConfig.from_hf(base).rope_tables[0]
    stretched = ModelConfig.from_hf({**base, "rope_scaling": scaling}).rope_tables[0]
    factors = np.array(plain) / np.array(stretched)
    np.testing.assert_allclose(factors[:29], 1.0)
    assert ((factors[29:35] > 1.0) & (factors[29:35] < 8.0)).all()
    np.testing.assert_allclose(factors[35:], 8.0)


def test_multimodal_gemma3_reads_its_text_part_with_the_usual_defaults() -> None:
    config = ModelConfig.from_hf(GEMMA3_4B)
    assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (262208, 8, 4)
    assert (config.head_dim, config.max_positions) == (256, 131072)
    assert config.tied_embeddings
    assert config.activation == "gelu_tanh"
    assert config.window_of_layer[:6] == (1024, 1024, 1024, 1024, 1024, 0)
    assert config.rope_of_layer[:6] == (1, 1, 1, 1, 1, 0)
    global_table, local_table = config.rope_tables
    assert (global_table[0], local_table[0]) == (1 / 8, 1.0)  # only the global one is scaled
    np.testing.assert_allclose(global_table[64] * 8, 1e6**-0.5)
    np.testing.assert_allclose(local_table[64], 1e4**-0.5)


def test_gemma3_gguf_reads_as_its_hugging_face_form() -> None:
    header = {
        "general.architecture": "gemma3",
        "gemma3.context_length": 32768,
        "gemma3.embedding_length": 1152,
        "gemma3.block_count": 26,
        "gemma3.feed_forward_length": 6912,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": 256,
        "gemma3.attention.value_length": 256,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.sliding_window": 512,
        "gemma3.rope.freq_base": 1e6,
        "gemma3.vocab_size": 262144,
    }
    published = {
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    }
    assert ModelConfig.from_gguf(header, tensor_names=()) == ModelConfig.from_hf(published)


def test_mistral_without_a_window_sees_everything() -> None:
    mistral = {**SMOLLM2_135M, "architectures": ["MistralForCausalLM"]}
    assert ModelConfig.from_hf({**mistral, "sliding_window": None}).window_of_layer == ()
    assert ModelConfig.from_hf({**mistral, "sliding_window": 4096}).window_of_layer[0] == 4096


def test_qwen2_ignores_a_window_that_is_switched_off() -> None:
    qwen2 = {**SMOLLM2_135M, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 32768}
    config = ModelConfig.from_hf({**qwen2, "use_sliding_window": False})
    assert config.window_of_layer == ()
    assert config.qkv_bias
    assert not config.o_bias


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_qwen_windows_are_those_of_transformers(architecture: str) -> None:
    def windows(**changes: Any) -> tuple[int, ...]:
        changes = {"num_hidden_layers": 4, "max_window_layers": 3, **changes}
        return ModelConfig.from_hf(
            {**SMOLLM2_135M, "architectures": [architecture], **changes}
        ).window_of_layer

    assert windows(use_sliding_window=True) == (0, 0, 0, 4096)
    assert windows(use_sliding_window=True, sliding_window=8) == (0, 0, 0, 8)
    assert windows(use_sliding_window=True, sliding_window=None) == ()
    assert windows(use_sliding_window=True, max_window_layers=28) == ()
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows(use_sliding_window=True, layer_types=kinds) == (4096, 0, 4096, 0)
    for switched_off in ({}, {"use_sliding_window": True, "sliding_window": None}):
        with pytest.raises(ModelError, match=r"layer_types .* no window is switched on"):
            windows(layer_types=kinds, **switched_off)


def test_absent_keys_are_transformers_defaults() -> None:
    base = {**SMOLLM2_135M, "hidden_size": 2048, "num_attention_heads": 32}
    del base["num_key_value_heads"]

    def read(architecture: str, **changes: Any) -> tuple[int, int]:
        config = ModelConfig.from_hf({**base, "architectures": [architecture], **changes})
        assert 2 * len(config.rope_tables[0]) == config.head_dim
        assert config.attention_scale == config.head_dim**-0.5
        return config.num_kv_heads, config.head_dim

    assert read("LlamaForCausalLM") == (32, 64)
    assert read("MistralForCausalLM") == (8, 64)
    assert read("Qwen2ForCausalLM") == (32, 64)
    assert read("Qwen3ForCausalLM") == (32, 128)
    assert read("Qwen3ForCausalLM", head_dim=64) == (32, 64)
    assert read("MistralForCausalLM", num_key_value_heads=None) == (32, 64)
    assert read("Qwen2ForCausalLM", num_attention_heads=16, num_key_value_heads=None) == (16, 128)


_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "vocab_size",
)


@pytest.mark.parametrize("value", [0, -1, 2**63, True, 1.5])
@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        *itertools.product(
            [f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3")],
            _SIZES,
        ),
        *(("OPTForCausalLM", key) for key in OPT_125M if key in {*_SIZES, "ffn_dim"}),
    ],
)
def test_sizes_out_of_range_name_their_key(architecture: str, key: str, value: Any) -> None:
    opt = architecture == "OPTForCausalLM"
    published = OPT_125M if opt else {**SMOLLM2_135M, "architectures": [architecture]}
    with pytest.raises(ModelError, match=f"'{key}' should be a whole number") as caught:
        ModelConfig.from_hf({**published, key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 0}, "'rope_theta' should be a number above 0"),
        ({"rope_theta": -1.0}, "'rope_theta' should be a number above 0"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' should be a finite number"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0.0; expected a finite"),
        ({"head_dim": 63}, "'head_dim' should be even, but is 63"),
        ({"hidden_size": 8}, "'head_dim' should be a whole number from 1 to 8192, but is 0"),
    ],
)
def test_numbers_that_would_divide_by_zero_name_their_key(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_hf({**SMOLLM2_135M, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window_pattern": 0}, "'sliding_window_pattern' should be a whole number from"),
        ({"query_pre_attn_scalar": 0}, "'query_pre_attn_scalar' should be a number above 0"),
        ({"final_logit_softcapping": 0.0}, "'final_logit_softcapping' should be a number above"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 30 layers"),
        ({"layer_types": [["x"]]}, "layer_types should be a list of"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
    ],
)
def test_unusable_gemma3_config_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_hf({**SMOLLM2_135M, "architectures": ["Gemma3ForCausalLM"], **changes})


def test_model_type_counts_where_architectures_are_absent() -> None:
    values = {key: value for key, value in OPT_125M.items() if key != "architectures"}
    assert ModelConfig.from_hf(values).family == "opt"


def test_a_stored_config_of_endless_layers_is_refused() -> None:
    values = ModelConfig.from_hf(SMOLLM2_135M).as_dict() | {"num_layers": 2**63}
    with pytest.raises(ModelError, match="num_layers is 9223372036854775808"):
        ModelConfig.from_dict(values)


def test_config_survives_json() -> None:
    config = ModelConfig.from_hf(GEMMA3_4B)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    ("published", "changes", "message"),
    [
        (SMOLLM2_135M, {"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM' is not supp"),
        (SMOLLM2_135M, {"architectures": None, "model_type": "rwkv"}, "'rwkv' is not supported"),
        (SMOLLM2_135M, {"hidden_size": None}, "config.json has no 'hidden_size'"),
        (SMOLLM2_135M, {"hidden_size": "wide"}, "'hidden_size' should be a whole number"),
        (SMOLLM2_135M, {"num_hidden_layers": 0}, "'num_hidden_layers' should be a who"),
        (SMOLLM2_135M, {"num_attention_heads": 0}, "'num_attention_heads' should be a"),
        (SMOLLM2_135M, {"num_key_value_heads": 2}, "9 query heads are not a multiple of 2"),
        (SMOLLM2_135M, {"hidden_act": "mish"}, "activation function 'mish' is not supported"),
        (SMOLLM2_135M, {"rope_scaling": {"type": "yarn", "factor": 4}}, "'yarn', which is not su"),
        (SMOLLM2_135M, {"rope_scaling": {"type": "linear"}}, "incomplete or malformed: 'factor'"),
        (SMOLLM2_135M, {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supp"),
        (SMOLLM2_135M, {"quantization_config": {"bits": 4}}, "quantized Hugging Face checkpoints"),
        (OPT_125M, {"word_embed_proj_dim": 512}, "word_embed_proj_dim 512, hidden_size 768"),
        (OPT_125M, {"do_layer_norm_before": False}, "do_layer_norm_before false"),
    ],
)
def test_unusable_config_says_what_is_wrong(
    published: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_hf({**published, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "mamba"}, "'mamba' is not supported; supported are gemma3, ll"),
        ({"general.architecture": None}, "the GGUF header has no 'general.architecture'"),
        ({"llama.block_count": None}, "no 'llama.block_count'"),
        (
            {"llama.attention.head_count_kv": [3, 3]},
            r"or the same for each of 30 layers, but is \[3, 3\]",
        ),
        ({"llama.attention.head_count_kv": [3] * 29 + [1]}, "or the same for each of 30 layers"),
        ({"llama.expert_count": 8}, "llama.expert_count = 8 is not supported"),
        ({"llama.nextn_predict_layers": 1}, "llama.nextn_predict_layers = 1 is not supported"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale = 0.5 is not supported"),
        ({"llama.attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv = 8.0 is not supported"),
        ({"llama.attention.causal": False}, "llama.attention.causal = False is not supported"),
        ({"llama.attention.rope_pattern": [1, 0]}, "attention.rope_pattern names layers without"),
        ({"llama.swiglu_clamp_exp": [0.0, 7.0]}, "llama.swiglu_clamp_exp = .* is not supported"),
        ({"llama.attention.value_length_swa": 32}, "value_length_swa = 32 is not supported"),
        ({"tokenizer.ggml.suppress_tokens": [7]}, "suppress_tokens .1 tokens .* not supported"),
        ({"llama.rope.freq_base": 0.0}, "'llama.rope.freq_base' should be a number above 0"),
        ({"llama.block_count": 2**63}, "'llama.block_count' should be a whole number from 1 to"),
        ({"llama.attention.head_count": 0}, "'llama.attention.head_count' should be a whole num"),
        ({"llama.embedding_length": 8}, "'llama.attention.key_length' should be .* but is 0"),
        ({"llama.rope.dimension_count": 32}, "dimension_count = 32 is not supported, only 64"),
        ({"llama.rope.scaling.type": "yarn"}, "'yarn', which is not supported"),
    ],
)
def test_unusable_gguf_header_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_gguf({**SMOLLM2_135M_GGUF, **changes}, tensor_names=())
