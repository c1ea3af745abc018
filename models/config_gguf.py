"""What the families' readers of GGUF key/values share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fjx.errors import ModelError
from fjx.models import rope
from fjx.models.config import ModelConfig
from fjx.models.fields import Fields


def decoder_config(
    header: Fields,
    family: str,
    tensor_names: Collection[str],
    rope_factors: Sequence[float] | None,
    **overrides: Any,
) -> ModelConfig:
    """The configuration of a decoder with gated MLPs and RoPE; families override what differs."""
    hidden_size = header.integer("embedding_length")
    num_heads = header.integer("attention.head_count")
    head_dim = header.integer("attention.key_length", hidden_size // max(num_heads, 1))
    header.refuse("attention.value_length", unless=head_dim)
    header.refuse("expert_count", unless=0)
    values: dict[str, Any] = {
        "family": family,
        "vocab_size": _vocab_size(header),
        "hidden_size": hidden_size,
        "num_layers": header.integer("block_count"),
        "num_heads": num_heads,
        "num_kv_heads": header.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "mlp_width": header.integer("feed_forward_length"),
        "max_positions": header.integer("context_length"),
        "norm_eps": header.number("attention.layer_norm_rms_epsilon"),
        "tied_embeddings": "output.weight" not in tensor_names,
        "attention_scale": head_dim**-0.5,
        "qkv_bias": "blk.0.attn_q.bias" in tensor_names,
        "o_bias": "blk.0.attn_output.bias" in tensor_names,
        "mlp_bias": "blk.0.ffn_down.bias" in tensor_names,
        "attention_soft_cap": header.optional_number("attn_logit_softcapping"),
        "logit_soft_cap": header.optional_number("final_logit_softcapping"),
    }
    if "rope_tables" not in overrides:
        table = rope_table(header, head_dim, default_theta=1e4)
        if "rope_freqs.weight" in tensor_names:
            table = _divided(table, rope_factors)
        values["rope_tables"] = (table,)
    return ModelConfig(**(values | overrides))


def rope_table(header: Fields, head_dim: int, default_theta: float) -> tuple[float, ...]:
    """The RoPE frequencies with the file's own scaling."""
    header.refuse("rope.dimension_count", unless=head_dim)
    table = rope.frequencies(head_dim, header.number("rope.freq_base", default_theta))
    kind = header.text("rope.scaling.type", "none")
    if kind == "none":
        return table
    factor = header.number("rope.scaling.factor", 1.0)
    return rope.scaled(table, {"rope_type": kind, "factor": factor})


def _divided(table: tuple[float, ...], factors: Sequence[float] | None) -> tuple[float, ...]:
    if factors is None or len(factors) != len(table):
        found = "nothing" if factors is None else f"{len(factors)} values"
        raise ModelError(f"tensor rope_freqs.weight should hold {len(table)} values, found {found}")
    return tuple(frequency / float(by) for frequency, by in zip(table, factors, strict=True))


def _vocab_size(header: Fields) -> int:
    # The token list is what the embedding has rows for; vocab_size is missing in older files.
    tokens = header.values.get("tokenizer.ggml.tokens")
    return len(tokens) if tokens is not None else header.integer("vocab_size")
