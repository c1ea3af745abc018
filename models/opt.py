"""OPT (Zhang et al. 2022, arXiv:2205.01068): learned positions, layer norms, biases, ReLU."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float, Int32

from fjx.errors import ModelError
from fjx.kernels.ragged import RaggedRows
from fjx.models import config_hf
from fjx.models.config import ModelConfig
from fjx.models.family import Family
from fjx.models.layers import Attention, BlockInputs, Head, LayerNorm, Mlp, TokenEmbed, param
from fjx.models.metadata_fields import MetadataFields

POSITION_OFFSET = 2
"""The first rows of the table of positions are never used, an inheritance from fairseq."""


class OptEmbed(nnx.Module):
    """Token embedding plus learned position."""

    def __init__(self, config: ModelConfig) -> None:
        self.embed = TokenEmbed(config)
        rows = config.max_positions + POSITION_OFFSET
        self.positions = param((rows, config.hidden_size), (None, "embed"))

    def __call__(self, tokens: Int32[Array, " T"], rows: RaggedRows) -> Float[Array, "T D"]:
        """Embed each row's token at its position."""
        positions: Array = self.positions[...][rows.positions + POSITION_OFFSET]
        return self.embed(tokens, rows) + positions


class OptBlock(nnx.Module):
    """Attention and an MLP, each behind a layer norm, added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        self.attn_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = Mlp(config)

    def __call__(
        self, x: Float[Array, "T D"], kv_pages: Array, at: BlockInputs
    ) -> tuple[Float[Array, "T D"], Array]:
        """Run the block."""
        attended, kv_pages = self.attention(self.attn_norm(x), kv_pages, at)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), kv_pages


def _opt_head(config: ModelConfig) -> Head:
    return Head(config, LayerNorm)


def _config_from_hf(fields: MetadataFields) -> ModelConfig:
    hidden_size = fields.size("hidden_size")
    if fields.integer("word_embed_proj_dim", hidden_size) != hidden_size:
        raise ModelError(
            f"{fields.where}: OPT models with projected embeddings (word_embed_proj_dim "
            f"{fields.integer('word_embed_proj_dim')}, hidden_size {hidden_size}) are not supported"
        )
    if not fields.flag("do_layer_norm_before", True):
        raise ModelError(
            f"{fields.where}: OPT models that norm after each layer (do_layer_norm_before false, "
            "as in opt-350m) are not supported"
        )
    fields.refuse("_remove_final_layer_norm", unless=False)
    fields.refuse("enable_bias", unless=True)
    fields.refuse("layer_norm_elementwise_affine", unless=True)
    heads = fields.size("num_attention_heads", most=hidden_size)
    head_dim = hidden_size // heads
    return ModelConfig(
        family="opt",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_layers=config_hf.num_layers(fields),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        mlp_width=fields.size("ffn_dim"),
        max_positions=fields.size("max_position_embeddings"),
        norm_eps=1e-5,
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        attention_scale=head_dim**-0.5,
        activation=config_hf.activation(fields, "activation_function", "relu"),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    )


OPT = Family(
    name="opt",
    hf_architectures=("OPTForCausalLM",),
    hf_model_types=("opt",),
    gguf_architectures=(),
    config_from_hf=_config_from_hf,
    config_from_gguf=None,
    embed=OptEmbed,
    block=OptBlock,
    head=_opt_head,
)
