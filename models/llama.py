"""Llama 2 and 3 (Touvron et al. 2023, arXiv:2307.09288), SmolLM2 and Mistral (arXiv:2310.06825)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flax import nnx
from jaxtyping import Array, Float

from fjx.models import config_gguf, config_hf
from fjx.models.config import ModelConfig
from fjx.models.family import Family
from fjx.models.layers import Attention, BlockInputs, GatedMlp, Head, RMSNorm, TokenEmbed
from fjx.models.metadata_fields import MetadataFields


class LlamaBlock(nnx.Module):
    """Attention and a gated MLP, each behind an RMS norm, added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMlp(config)

    def __call__(
        self, x: Float[Array, "T D"], kv_pages: Array, at: BlockInputs
    ) -> tuple[Float[Array, "T D"], Array]:
        """Run the block."""
        attended, kv_pages = self.attention(self.attn_norm(x), kv_pages, at)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), kv_pages


def llama_head(config: ModelConfig) -> Head:
    """RMS norm and unembedding."""
    return Head(config, RMSNorm)


def _config_from_hf(fields: MetadataFields) -> ModelConfig:
    attention_bias = fields.flag("attention_bias", False)
    return config_hf.decoder_config(
        fields,
        "llama",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def _mistral_config_from_hf(fields: MetadataFields) -> ModelConfig:
    # Absent means the 4,096 of the first Mistral; later ones say null, which is no window.
    windows: tuple[int, ...] = ()
    if fields.values.get("sliding_window", 4096) is not None:
        windows = (fields.size("sliding_window", 4096),) * config_hf.num_layers(fields)
    return config_hf.decoder_config(fields, "mistral", default_kv_heads=8, window_of_layer=windows)


def _config_from_gguf(
    header: MetadataFields, tensor_names: Collection[str], rope_factors: Sequence[float] | None
) -> ModelConfig:
    return config_gguf.decoder_config(
        header,
        "llama",
        tensor_names,
        rope_factors,
        window_of_layer=config_gguf.windows(header, period=0),
    )


LLAMA = Family(
    name="llama",
    hf_architectures=("LlamaForCausalLM",),
    hf_model_types=("llama",),
    gguf_architectures=("llama",),
    config_from_hf=_config_from_hf,
    config_from_gguf=_config_from_gguf,
    embed=TokenEmbed,
    block=LlamaBlock,
    head=llama_head,
)
MISTRAL = Family(
    name="mistral",
    hf_architectures=("MistralForCausalLM",),
    hf_model_types=("mistral",),
    gguf_architectures=(),  # GGUF files call it llama
    config_from_hf=_mistral_config_from_hf,
    config_from_gguf=None,
    embed=TokenEmbed,
    block=LlamaBlock,
    head=llama_head,
)
