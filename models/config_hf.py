"""What the families' readers of config.json share."""

from __future__ import annotations

from typing import Any

from fjx.errors import ModelError
from fjx.models import rope
from fjx.models.config import Activation, ModelConfig
from fjx.models.fields import Fields

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def decoder_config(fields: Fields, family: str, **overrides: Any) -> ModelConfig:
    """The configuration of a decoder with gated MLPs and RoPE; families override what differs."""
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    max_positions = fields.integer("max_position_embeddings")
    head_dim = fields.integer("head_dim", hidden_size // max(num_heads, 1))
    values: dict[str, Any] = {
        "family": family,
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": fields.integer("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "mlp_width": fields.integer("intermediate_size"),
        "max_positions": max_positions,
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tied_embeddings": fields.flag("tie_word_embeddings", False),
        "attention_scale": head_dim**-0.5,
        "activation": activation(fields, "hidden_act", "silu"),
    }
    if "rope_tables" not in overrides:
        values["rope_tables"] = (rope_table(fields, head_dim, max_positions),)
    return ModelConfig(**(values | overrides))


def rope_table(fields: Fields, head_dim: int, max_positions: int) -> tuple[float, ...]:
    """The RoPE frequencies, from ``rope_parameters`` (new files) or ``rope_scaling`` (old ones)."""
    scaling = fields.mapping("rope_parameters") or fields.mapping("rope_scaling")
    scaling = {"original_max_position_embeddings": max_positions, **scaling}
    Fields(scaling, f"{fields.where}, rope_parameters").refuse("partial_rotary_factor", unless=1.0)
    fields.refuse("partial_rotary_factor", unless=1.0)
    theta = Fields(scaling, fields.where).number("rope_theta", fields.number("rope_theta", 1e4))
    return rope.scaled(rope.frequencies(head_dim, theta), scaling)


def activation(fields: Fields, name: str, default: str) -> Activation:
    """The activation function that the file names."""
    found = fields.text(name, default)
    if found not in _ACTIVATIONS:
        raise ModelError(
            f"{fields.where}: the activation function {found!r} is not supported; "
            f"supported are {', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[found]


def is_sliding(fields: Fields, by_default: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which layers have a sliding window: ``layer_types``, or the family's rule where absent."""
    kinds = fields.values.get("layer_types")
    if kinds is None:
        return by_default
    known = {"sliding_attention": True, "full_attention": False}
    if not isinstance(kinds, list | tuple) or not all(kind in known for kind in kinds):
        raise ModelError(
            f"{fields.where}: layer_types should be a list of 'full_attention' and "
            f"'sliding_attention', but is {kinds!r}"
        )
    return tuple(known[kind] for kind in kinds)
