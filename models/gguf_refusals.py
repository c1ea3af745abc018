"""GGUF keys that make a model compute what the families here do not.

From llama.cpp's list of keys (``LLM_KV_NAMES`` in ``llama-arch.cpp``): each changes the logits of
some family there. A file that sets one would answer wrong without a word if it were ignored. Keys
that only matter together with another one that is refused, such as those of experts, are left out,
and so is what names no computation (names, licences, training).
"""

from __future__ import annotations

from typing import Any

from fjx.errors import ModelError
from fjx.models.metadata_fields import MetadataFields

_SWITCHES_AND_SIZES = (
    "adapters.count",
    "attention.clamp_kqv",
    "attention.group_norm_groups",
    "attention.indexer.head_count",
    "attention.key_length_mla",
    "attention.kv_lora_rank",
    "attention.max_alibi_bias",
    "attention.q_lora_rank",
    "attention.recurrent_layers",
    "attention.relative_buckets_count",
    "attention.shared_kv_layers",
    "attention.temperature_length",
    "attention.temperature_scale",
    "attention.compress_ratios",
    "attn_res.block_size",
    "decoder_block_count",
    "embedding_length_per_layer_input",
    "expert_count",
    "full_attention_interval",
    "hash_layer_count",
    "hrm.layers_per_stack",
    "hyper_connection.count",
    "leading_dense_block_count",
    "moe_every_n_layers",
    "n_deepstack_layers",
    "nextn_predict_layers",
    "num_loops",
    "ple.layers",
    "rescale_every_n_layers",
    "rope.dimension_sections",
    "rope.scaling.alpha",
    "rope.scaling.yarn_ext_factor",
    "router_logit_softcapping",
    "shortconv.l_cache",
    "ssm.state_size",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
    "swin_norm",
    "token_shift_count",
    "use_parallel_residual",
    "wkv.head_size",
)
"""Off where they are 0, false or a list of nothing else."""
_FACTORS = (
    "attention.output_scale",
    "attention.value_scale",
    "embedding_scale",
    "logit_scale",
    "residual_scale",
)
"""Off where they are 0, as in llama.cpp, or 1."""


def refuse_other_computations(header: MetadataFields) -> None:
    """Raise ModelError, with its name, for a key that asks for what is not computed here."""
    for name in (*_SWITCHES_AND_SIZES, *_FACTORS):
        value = header.values.get(header.prefix + name)
        if _is_on(value) and not (name in _FACTORS and value == 1):
            raise ModelError(f"{header.where}: {header.prefix}{name} = {value!r} is not supported")
    header.refuse("attention.causal", unless=True)
    if not all(header.values.get(f"{header.prefix}attention.rope_pattern") or [True]):
        raise ModelError(
            f"{header.where}: {header.prefix}attention.rope_pattern names layers without RoPE, "
            "which are not supported"
        )
    if suppressed := header.values.get("tokenizer.ggml.suppress_tokens"):
        raise ModelError(
            f"{header.where}: tokenizer.ggml.suppress_tokens ({len(suppressed)} tokens that are "
            "never sampled) is not supported; give them a logit_bias of -100 instead"
        )


def _is_on(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_on(item) for item in value)
    return bool(value) and value != -1  # some writers mean "not set" by it
