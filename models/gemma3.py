"""Gemma 3, text only (Gemma team 2025, arXiv:2503.19786).

Five of six layers see a sliding window and have a RoPE table of their own; each half of a block is
normed before and after; queries and keys are normed; embeddings are scaled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flax import nnx
from jaxtyping import Array, Float

from fjx.errors import ModelError
from fjx.models import config_gguf, config_hf, rope
from fjx.models.config import ModelConfig
from fjx.models.family import Family
from fjx.models.layers import Attention, BlockInputs, GatedMlp, RMSNorm, TokenEmbed
from fjx.models.llama import llama_head
from fjx.models.metadata_fields import MetadataFields

GLOBAL_THETA, LOCAL_THETA = 1e6, 1e4
# The layers of the 27B model, the only one whose attention scale does not follow its head size.
LAYERS_OF_27B = 62


class Gemma3Block(nnx.Module):
    """Attention and a gated MLP, each between two RMS norms, added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.post_attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMlp(config)
        self.post_mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)

    def __call__(
        self, x: Float[Array, "T D"], kv_pages: Array, at: BlockInputs
    ) -> tuple[Float[Array, "T D"], Array]:
        """Run the block."""
        attended, kv_pages = self.attention(self.attn_norm(x), kv_pages, at)
        x = x + self.post_attn_norm(attended)
        return x + self.post_mlp_norm(self.mlp(self.mlp_norm(x))), kv_pages


def _config_from_hf(fields: MetadataFields) -> ModelConfig:
    fields.refuse("use_bidirectional_attention", unless=False)
    fields.refuse("attention_bias", unless=False)
    hidden_size, layers = fields.size("hidden_size"), config_hf.num_layers(fields)
    # Released files leave out whatever equals the defaults of Transformers' Gemma3TextConfig.
    head_dim = config_hf.head_size(fields, "head_dim", 256)
    max_positions = fields.size("max_position_embeddings", 131_072)
    period = fields.size("sliding_window_pattern", 6)
    sliding = config_hf.is_sliding(
        fields, tuple((layer + 1) % period != 0 for layer in range(layers))
    )
    window = fields.size("sliding_window", 4096)
    return config_hf.decoder_config(
        fields.with_defaults(
            vocab_size=262_208,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=max_positions,
            hidden_activation="gelu_pytorch_tanh",
            tie_word_embeddings=True,
        ),
        "gemma3",
        head_dim=head_dim,
        qk_norm=True,
        activation=config_hf.activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        attention_scale=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        embed_scale=hidden_size**0.5,
        rope_tables=_rope_tables_from_hf(fields, head_dim, max_positions),
        rope_of_layer=tuple(int(slides) for slides in sliding),
        window_of_layer=tuple(window if slides else 0 for slides in sliding),
        attention_soft_cap=fields.optional_positive("attn_logit_softcapping"),
        logit_soft_cap=fields.optional_positive("final_logit_softcapping"),
    )


def _rope_tables_from_hf(
    fields: MetadataFields, head_dim: int, max_positions: int
) -> tuple[tuple[float, ...], ...]:
    """The global and the local table; scaling in old files is the global one's."""
    parameters = MetadataFields(
        fields.mapping("rope_parameters"), f"{fields.where}, rope_parameters"
    )
    old = {
        "full_attention": {
            "rope_theta": fields.positive("rope_theta", GLOBAL_THETA),
            **fields.mapping("rope_scaling"),
        },
        "sliding_attention": {"rope_theta": fields.positive("rope_local_base_freq", LOCAL_THETA)},
    }
    return tuple(
        config_hf.rope_table(
            MetadataFields(
                {"rope_parameters": {**old[kind], **parameters.mapping(kind)}}, fields.where
            ),
            head_dim,
            max_positions,
        )
        for kind in old
    )


def _config_from_gguf(
    header: MetadataFields, tensor_names: Collection[str], rope_factors: Sequence[float] | None
) -> ModelConfig:
    if "rope_freqs.weight" in tensor_names:
        raise ModelError(f"{header.where}: a gemma3 model with rope_freqs.weight is not supported")
    hidden_size = header.size("embedding_length")
    head_dim = scaled_heads = config_gguf.head_size(header)
    if config_gguf.num_layers(header) == LAYERS_OF_27B:
        scaled_heads = hidden_size // config_gguf.of_all_layers(header, "attention.head_count")
    windows = config_gguf.windows(header, period=6)
    local_theta = header.positive("rope.freq_base_swa", LOCAL_THETA)
    return config_gguf.decoder_config(
        header,
        "gemma3",
        tensor_names,
        rope_factors,
        head_dim=head_dim,
        qk_norm=True,
        activation="gelu_tanh",
        attention_scale=scaled_heads**-0.5,
        embed_scale=hidden_size**0.5,
        rope_tables=(
            config_gguf.rope_table(header, head_dim),
            rope.frequencies(head_dim, local_theta),
        ),
        rope_of_layer=tuple(int(window > 0) for window in windows),
        window_of_layer=windows,
    )


GEMMA3 = Family(
    name="gemma3",
    hf_architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    hf_model_types=("gemma3_text", "gemma3"),
    gguf_architectures=("gemma3",),
    config_from_hf=_config_from_hf,
    config_from_gguf=_config_from_gguf,
    embed=TokenEmbed,
    block=Gemma3Block,
    head=llama_head,
)
