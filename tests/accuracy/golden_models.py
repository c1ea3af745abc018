"""The random small models whose logits are stored in goldens/, for the tests and make_goldens.py.

Only NumPy is needed here, so that the script runs without fjx and JAX.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

VOCAB_SIZE = 96
PROMPT_LENGTHS = (45, 27)

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **_SIZES,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    # Each of the three cases of this scaling meets some of the eight frequencies.
    "llama3": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **_SIZES,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "tie_word_embeddings": True,
    },
    "mistral": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        **_SIZES,
        "head_dim": 24,
        "sliding_window": 12,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        **_SIZES,
        "rope_theta": 1000000.0,
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 2,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        **_SIZES,
        "head_dim": 32,
        "attention_bias": True,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        **_SIZES,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window": 10,
        "sliding_window_pattern": 3,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "opt": {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "do_layer_norm_before": True,
        "activation_function": "relu",
    },
}


def random_prompts(model: str) -> tuple[np.ndarray, ...]:
    """The token ids of each prompt, int32."""
    generator = np.random.default_rng(zlib.crc32(model.encode()))
    return tuple(
        generator.integers(0, VOCAB_SIZE, length, dtype=np.int32) for length in PROMPT_LENGTHS
    )


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Float32 tensors, by their Hugging Face names, on which alone they depend."""
    return {name: _random_weight(name, tuple(shape)) for name, shape in shapes.items()}


def _random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if len(shape) == 1:
        return 0.2 * noise + (0.0 if name.endswith("bias") else 1.0)
    if "embed" in name:
        return noise
    return noise / np.float32(shape[1] ** 0.5)
