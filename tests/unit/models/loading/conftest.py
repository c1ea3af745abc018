"""Small random models, written in the formats that users bring."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy

from fjx.models.config import ModelConfig
from fjx.models.loading.source import ModelSource
from fjx.models.tensors import random_tensors

Tensors = dict[str, np.ndarray]

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
HF_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "architectures": ["LlamaForCausalLM"]},
    "llama with biases": {
        **SIZES,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral": {**SIZES, "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {**SIZES, "architectures": ["Qwen2ForCausalLM"], "head_dim": 16},
    "qwen3": {**SIZES, "architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True},
    "gemma3": {
        **SIZES,
        "architectures": ["Gemma3ForCausalLM"],
        "tie_word_embeddings": True,
        "sliding_window": 8,
        "query_pre_attn_scalar": 32,
    },
    "opt": {
        "architectures": ["OPTForCausalLM"],
        "vocab_size": 96,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 96,
        "max_position_embeddings": 128,
    },
}
GGUF_ARCHITECTURES = {
    "llama": "llama",
    "llama with biases": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
}

_NORMS = {
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "gemma3": ("input_layernorm", "pre_feedforward_layernorm"),
    "opt": ("self_attn_layer_norm", "final_layer_norm"),
}


@dataclass(frozen=True)
class RandomModel:
    """A configuration with random canonical tensors."""

    name: str
    hf_config: dict[str, Any]
    config: ModelConfig
    tensors: Tensors

    def hf_tensors(self, prefix: str | None = None, head: str = "") -> Tensors:
        """The tensors as a Hugging Face checkpoint holds them."""
        opt = self.config.family == "opt"
        prefix = prefix if prefix is not None else "model.decoder." if opt else "model."
        attn_norm, mlp_norm = _NORMS.get(self.config.family, _NORMS["llama"])
        names = {
            "attn_norm": attn_norm,
            "post_attn_norm": "post_attention_layernorm",
            "mlp_norm": mlp_norm,
            "post_mlp_norm": "post_feedforward_layernorm",
            "q": "self_attn.q_proj",
            "k": "self_attn.k_proj",
            "v": "self_attn.v_proj",
            "q_norm": "self_attn.q_norm",
            "k_norm": "self_attn.k_norm",
            "o": "self_attn.out_proj" if opt else "self_attn.o_proj",
            "gate": "mlp.gate_proj",
            "up": "fc1" if opt else "mlp.up_proj",
            "down": "fc2" if opt else "mlp.down_proj",
        }
        top = {
            "embed.tokens": f"{prefix}embed_tokens",
            "embed.positions": f"{prefix}embed_positions",
            "head.norm": f"{prefix}final_layer_norm" if opt else f"{prefix}norm",
            "head.unembed": f"{head}lm_head",
        }
        gemma = self.config.family == "gemma3"
        return {
            _named(name, top, f"{prefix}layers.", names): values - 1
            if gemma and "norm" in name
            else values
            for name, values in self._apart().items()
        }

    def gguf_tensors(self) -> Tensors:
        """The tensors as a GGUF file holds them."""
        names = {
            "attn_norm": "attn_norm",
            "post_attn_norm": "post_attention_norm",
            "mlp_norm": "ffn_norm",
            "post_mlp_norm": "post_ffw_norm",
            "q": "attn_q",
            "k": "attn_k",
            "v": "attn_v",
            "q_norm": "attn_q_norm",
            "k_norm": "attn_k_norm",
            "o": "attn_output",
            "gate": "ffn_gate",
            "up": "ffn_up",
            "down": "ffn_down",
        }
        top = {
            "embed.tokens": "token_embd",
            "head.norm": "output_norm",
            "head.unembed": "output",
        }
        heads = {"q": self.config.num_heads, "k": self.config.num_kv_heads}
        result = {}
        for name, values in self._apart().items():
            role = name.split(".")[-1].removesuffix("_bias")
            if self.config.family == "llama" and role in heads:
                # llama.cpp's converter: the halves of each head take turns, row by row.
                halves = values.reshape(heads[role], 2, -1, *values.shape[1:])
                values = halves.swapaxes(1, 2).reshape(values.shape)
            result[_named(name, top, "blk.", names)] = values
        return result

    def _apart(self) -> Tensors:
        """Canonical names with q, k, v and gate, up apart, matrices as (out, in)."""
        config = self.config
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        fused = {
            "qkv": {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)},
            "gate_up": {
                "gate": (0, config.mlp_width),
                "up": (config.mlp_width, 2 * config.mlp_width),
            },
        }
        result = {}
        for name, values in self.tensors.items():
            if name == "head.unembed" and config.tied_embeddings:
                continue
            stem, _, role = name.rpartition(".")
            bias = "_bias" if role.endswith("_bias") else ""
            pieces = fused.get(role.removesuffix("_bias"), {role.removesuffix("_bias"): (0, None)})
            for piece, (start, end) in pieces.items():
                part = values[..., start:end]
                in_out = part.ndim == 2 and stem != "embed"
                result[f"{stem}.{piece}{bias}"] = np.ascontiguousarray(part.T if in_out else part)
        return result


def _named(name: str, top: Mapping[str, str], layers: str, of_layer: Mapping[str, str]) -> str:
    kind = "bias" if name.endswith("_bias") else "weight"
    name = name.removesuffix("_bias")
    if name in top:
        return f"{top[name]}.{kind}"
    _, layer, role = name.split(".")
    return f"{layers}{layer}.{of_layer[role]}.{kind}"


def random_model(name: str, **changes: Any) -> RandomModel:
    hf_config = {**HF_CONFIGS[name], **changes}
    config = ModelConfig.from_hf(hf_config)
    tensors = dict(random_tensors(config, seed=1))
    # Multiples of 1/256, so that w and 1 + w are both exact.
    tensors |= {k: np.round(v * 256) / 256 for k, v in tensors.items() if k.endswith("norm")}
    return RandomModel(name, hf_config, config, tensors)


@pytest.fixture(name="random_model")
def random_model_fixture() -> Callable[..., RandomModel]:
    """Make a small model of a family, with changes to its config.json."""
    return random_model


@pytest.fixture
def llama() -> RandomModel:
    return random_model("llama")


def write_hf(
    folder: Path, model: RandomModel, tensors: Tensors | None = None, shards: int = 1
) -> ModelSource:
    """Write config.json and the model's tensors (or other ones) as safetensors."""
    tensors = model.hf_tensors() if tensors is None else tensors
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.hf_config))
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return ModelSource("hf", folder, model.name)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        members = dict(list(tensors.items())[shard::shards])
        safetensors.numpy.save_file(members, folder / file)
        weight_map |= dict.fromkeys(members, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return ModelSource("hf", folder, model.name)


@pytest.fixture(name="write_hf")
def write_hf_fixture() -> Callable[..., ModelSource]:
    return write_hf


def write_gguf(
    path: Path,
    model: RandomModel,
    tensors: Tensors | None = None,
    quantization: gguf.GGMLQuantizationType | None = None,
    extra: Mapping[str, int] | None = None,
) -> ModelSource:
    """Write the model's tensors (or other ones); matrices quantized if so wanted."""
    tensors = model.gguf_tensors() if tensors is None else tensors
    config = model.config
    writer = gguf.GGUFWriter(path, GGUF_ARCHITECTURES[model.name])
    writer.add_vocab_size(config.vocab_size)
    writer.add_token_list([f"<{token}>" for token in range(config.vocab_size)])
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(1e6 if config.family == "gemma3" else 1e4)
    if config.family == "gemma3":
        writer.add_sliding_window(8)
    for key, value in (extra or {}).items():
        writer.add_uint16(key, value)
    for name, values in tensors.items():
        if quantization is None or values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            packed = gguf.quants.quantize(values, quantization)
            writer.add_tensor(name, packed, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelSource("gguf", path, model.name)


@pytest.fixture(name="write_gguf")
def write_gguf_fixture() -> Callable[..., ModelSource]:
    return write_gguf


@pytest.fixture
def assert_same() -> Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]:
    """Both hold the same names, and values equal to the last bit."""

    def check(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name].shape == values.shape, name
            np.testing.assert_array_equal(found[name], values, err_msg=name)

    return check
