"""What the families' readers of config.json share."""

from __future__ import annotations

from typing import Any

from fjx.errors import ModelError
from fjx.models import rope
from fjx.models.config import MAX_HEAD_DIM, MAX_LAYERS, Activation, ModelConfig
from fjx.models.metadata_fields import MetadataFields

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def decoder_config(
    fields: MetadataFields,
    family: str,
    *,
    default_kv_heads: int | None = None,
    default_head_dim: int | None = None,
    **overrides: Any,
) -> ModelConfig:
    """The configuration of a decoder with gated MLPs and RoPE; families override what differs.

    Args:
        fields: the values of config.json.
        family: name in `fjx.models.registry`.
        default_kv_heads: KV heads where the key is absent; None, or a null in the file: as many as
            query heads.
        default_head_dim: head size where the key is absent or null; None: by the hidden size.
        overrides: fields of the configuration.
    """
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    max_positions = fields.size("max_position_embeddings")
    head_dim = head_size(fields, "head_dim", default_head_dim or hidden_size // num_heads)
    kv_heads = num_heads
    if default_kv_heads is not None and "num_key_value_heads" not in fields.values:
        kv_heads = default_kv_heads
    values: dict[str, Any] = {
        "family": family,
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": num_layers(fields),
        "num_heads": num_heads,
        "num_kv_heads": fields.size("num_key_value_heads", kv_heads),
        "head_dim": head_dim,
        "mlp_width": fields.size("intermediate_size"),
        "max_positions": max_positions,
        "norm_eps": fields.positive("rms_norm_eps", 1e-6),
        "tied_embeddings": fields.flag("tie_word_embeddings", False),
        "attention_scale": head_dim**-0.5,
        "activation": activation(fields, "hidden_act", "silu"),
    }
    if "rope_tables" not in overrides:
        values["rope_tables"] = (rope_table(fields, head_dim, max_positions),)
    return ModelConfig(**(values | overrides))


def num_layers(fields: MetadataFields) -> int:
    """The number of blocks."""
    return fields.size("num_hidden_layers", most=MAX_LAYERS)


def head_size(fields: MetadataFields, name: str, default: int) -> int:
    """The size of a head, which RoPE cuts into pairs."""
    size = fields.size(name, default, most=MAX_HEAD_DIM)
    if size % 2:
        raise ModelError(f"{fields.where}: {fields.prefix + name!r} should be even, but is {size}")
    return size


def rope_table(fields: MetadataFields, head_dim: int, max_positions: int) -> tuple[float, ...]:
    """The RoPE frequencies, from ``rope_parameters`` (new files) or ``rope_scaling`` (old ones)."""
    scaling = fields.mapping("rope_parameters") or fields.mapping("rope_scaling")
    scaling = {"original_max_position_embeddings": max_positions, **scaling}
    MetadataFields(scaling, f"{fields.where}, rope_parameters").refuse(
        "partial_rotary_factor", unless=1.0
    )
    fields.refuse("partial_rotary_factor", unless=1.0)
    theta = MetadataFields(scaling, fields.where).positive(
        "rope_theta", fields.positive("rope_theta", 1e4)
    )
    return rope.scaled(rope.frequencies(head_dim, theta), scaling)


def activation(fields: MetadataFields, name: str, default: str) -> Activation:
    """The activation function that the file names."""
    found = fields.text(name, default)
    if found not in _ACTIVATIONS:
        raise ModelError(
            f"{fields.where}: the activation function {found!r} is not supported; "
            f"supported are {', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[found]


def is_sliding(fields: MetadataFields, by_default: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which layers have a sliding window: ``layer_types``, or the family's rule where absent."""
    kinds = fields.values.get("layer_types")
    if kinds is None:
        return by_default
    known = {"sliding_attention": True, "full_attention": False}
    if not isinstance(kinds, list | tuple) or not all(str(kind) in known for kind in kinds):
        raise ModelError(
            f"{fields.where}: layer_types should be a list of 'full_attention' and "
            f"'sliding_attention', but is {kinds!r}"
        )
    if len(kinds) != len(by_default):
        raise ModelError(
            f"{fields.where}: layer_types has {len(kinds)} entries for {len(by_default)} layers"
        )
    return tuple(known[kind] for kind in kinds)
