"""How Hugging Face checkpoints name the tensors of each family."""

from __future__ import annotations

from collections.abc import Collection

from fjx.models.config import ModelConfig
from fjx.models.loading.recipes import Naming

_LLAMA = {
    "embed.tokens": "embed_tokens.weight",
    "attn_norm": "layers.{i}.input_layernorm.weight",
    "q": "layers.{i}.self_attn.q_proj.weight",
    "k": "layers.{i}.self_attn.k_proj.weight",
    "v": "layers.{i}.self_attn.v_proj.weight",
    "q_norm": "layers.{i}.self_attn.q_norm.weight",
    "k_norm": "layers.{i}.self_attn.k_norm.weight",
    "o": "layers.{i}.self_attn.o_proj.weight",
    "mlp_norm": "layers.{i}.post_attention_layernorm.weight",
    "gate": "layers.{i}.mlp.gate_proj.weight",
    "up": "layers.{i}.mlp.up_proj.weight",
    "down": "layers.{i}.mlp.down_proj.weight",
    "head.norm": "norm.weight",
}
_GEMMA3 = _LLAMA | {
    "post_attn_norm": "layers.{i}.post_attention_layernorm.weight",
    "mlp_norm": "layers.{i}.pre_feedforward_layernorm.weight",
    "post_mlp_norm": "layers.{i}.post_feedforward_layernorm.weight",
}
_OPT = {
    "embed.tokens": "embed_tokens.weight",
    "embed.positions": "embed_positions.weight",
    "attn_norm": "layers.{i}.self_attn_layer_norm.weight",
    "q": "layers.{i}.self_attn.q_proj.weight",
    "k": "layers.{i}.self_attn.k_proj.weight",
    "v": "layers.{i}.self_attn.v_proj.weight",
    "o": "layers.{i}.self_attn.out_proj.weight",
    "mlp_norm": "layers.{i}.final_layer_norm.weight",
    "up": "layers.{i}.fc1.weight",
    "down": "layers.{i}.fc2.weight",
    "head.norm": "final_layer_norm.weight",
}
_ROLES = {"gemma3": _GEMMA3, "opt": _OPT}
_PREFIXES = {"opt": "model.decoder."}
_IGNORED = (
    r".*\.rotary_emb\.inv_freq",
    r"(.*\.)?(vision_tower|vision_model|multi_modal_projector)\..*",
)
_EMBEDDING = "embed_tokens.weight"
_UNEMBEDDING = "lm_head.weight"


def hf_naming(config: ModelConfig, present: Collection[str]) -> Naming:
    """Return the names for a family, with the prefix that the checkpoint's own names have.

    The prefix is ``model.``, ``model.decoder.`` (OPT), ``language_model.model.`` or
    ``model.language_model.`` (multimodal Gemma 3), or nothing (saved without the head).
    """
    prefix = _prefix_of(_EMBEDDING, present, _PREFIXES.get(config.family, "model."))
    roles = {role: prefix + name for role, name in _ROLES.get(config.family, _LLAMA).items()}
    roles["head.unembed"] = _prefix_of(_UNEMBEDDING, present, "") + _UNEMBEDDING
    # A tied checkpoint may hold the same matrix twice.
    ignored = (*_IGNORED, rf"(.*\.)?{_UNEMBEDDING}") if config.tied_embeddings else _IGNORED
    return Naming(roles, ignored, norm_offset=1.0 if config.family == "gemma3" else 0.0)


def _prefix_of(suffix: str, present: Collection[str], default: str) -> str:
    return next((name.removesuffix(suffix) for name in present if name.endswith(suffix)), default)
