"""How GGUF files name the tensors of each family.

Source: `gguf.constants.TENSOR_NAMES` and llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

from fjx.models.config import ModelConfig
from fjx.models.loading.recipes import Naming

_ROLES = {
    "embed.tokens": "token_embd.weight",
    "attn_norm": "blk.{i}.attn_norm.weight",
    "q": "blk.{i}.attn_q.weight",
    "k": "blk.{i}.attn_k.weight",
    "v": "blk.{i}.attn_v.weight",
    "q_norm": "blk.{i}.attn_q_norm.weight",
    "k_norm": "blk.{i}.attn_k_norm.weight",
    "o": "blk.{i}.attn_output.weight",
    "post_attn_norm": "blk.{i}.post_attention_norm.weight",
    "mlp_norm": "blk.{i}.ffn_norm.weight",
    "gate": "blk.{i}.ffn_gate.weight",
    "up": "blk.{i}.ffn_up.weight",
    "down": "blk.{i}.ffn_down.weight",
    "post_mlp_norm": "blk.{i}.post_ffw_norm.weight",
    "head.norm": "output_norm.weight",
    "head.unembed": "output.weight",
}
# RoPE's frequencies are part of the model's configuration.
_IGNORED = (r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd\.weight")


def gguf_naming(config: ModelConfig) -> Naming:
    """Return the names for a family. Norm weights are stored as the multiplier in all of them."""
    return Naming(_ROLES, _IGNORED, interleaved_rope=config.family == "llama")
