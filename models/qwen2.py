"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on Q, K and V."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fjx.errors import ModelError
from fjx.models import config_gguf, config_hf
from fjx.models.config import ModelConfig
from fjx.models.family import Family
from fjx.models.layers import TokenEmbed
from fjx.models.llama import LlamaBlock, llama_head
from fjx.models.metadata_fields import MetadataFields

DEFAULT_WINDOW = 4096
DEFAULT_KV_HEADS = 32
"""What Transformers' Qwen2Config and Qwen3Config take for absent keys."""


def windows_from_hf(fields: MetadataFields) -> tuple[int, ...]:
    """The layers' windows: from ``max_window_layers`` on, where ``use_sliding_window`` is on.

    An absent window is Transformers' 4,096; a null is none.
    """
    layers = config_hf.num_layers(fields)
    slides = fields.flag("use_sliding_window", False)
    if slides and fields.values.get("sliding_window", DEFAULT_WINDOW) is None:
        slides = False
    first = fields.integer("max_window_layers", 28)
    sliding = config_hf.is_sliding(
        fields, tuple(slides and layer >= first for layer in range(layers))
    )
    if not any(sliding):
        return ()
    if not slides:
        raise ModelError(
            f"{fields.where}: layer_types has layers of 'sliding_attention', but no window is "
            "switched on (use_sliding_window, sliding_window)"
        )
    window = fields.size("sliding_window", DEFAULT_WINDOW)
    return tuple(window if slides else 0 for slides in sliding)


def _config_from_hf(fields: MetadataFields) -> ModelConfig:
    return config_hf.decoder_config(
        fields,
        "qwen2",
        default_kv_heads=DEFAULT_KV_HEADS,
        qkv_bias=True,
        window_of_layer=windows_from_hf(fields),
    )


def _config_from_gguf(
    header: MetadataFields, tensor_names: Collection[str], rope_factors: Sequence[float] | None
) -> ModelConfig:
    config_gguf.refuse_windows(header)
    return config_gguf.decoder_config(header, "qwen2", tensor_names, rope_factors, qkv_bias=True)


QWEN2 = Family(
    name="qwen2",
    hf_architectures=("Qwen2ForCausalLM",),
    hf_model_types=("qwen2",),
    gguf_architectures=("qwen2",),
    config_from_hf=_config_from_hf,
    config_from_gguf=_config_from_gguf,
    embed=TokenEmbed,
    block=LlamaBlock,
    head=llama_head,
)
