"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): Llama with normed queries and keys."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fjx.models import config_gguf, config_hf
from fjx.models.config import ModelConfig
from fjx.models.family import Family
from fjx.models.layers import TokenEmbed
from fjx.models.llama import LlamaBlock, llama_head
from fjx.models.metadata_fields import MetadataFields
from fjx.models.qwen2 import DEFAULT_KV_HEADS, windows_from_hf


def _config_from_hf(fields: MetadataFields) -> ModelConfig:
    attention_bias = fields.flag("attention_bias", False)
    return config_hf.decoder_config(
        fields,
        "qwen3",
        default_kv_heads=DEFAULT_KV_HEADS,
        default_head_dim=128,  # not hidden_size / heads
        qk_norm=True,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        window_of_layer=windows_from_hf(fields),
    )


def _config_from_gguf(
    header: MetadataFields, tensor_names: Collection[str], rope_factors: Sequence[float] | None
) -> ModelConfig:
    config_gguf.refuse_windows(header)
    return config_gguf.decoder_config(header, "qwen3", tensor_names, rope_factors, qk_norm=True)


QWEN3 = Family(
    name="qwen3",
    hf_architectures=("Qwen3ForCausalLM",),
    hf_model_types=("qwen3",),
    gguf_architectures=("qwen3",),
    config_from_hf=_config_from_hf,
    config_from_gguf=_config_from_gguf,
    embed=TokenEmbed,
    block=LlamaBlock,
    head=llama_head,
)
