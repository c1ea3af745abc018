"""What the families' readers of GGUF key/values share.

Keys, defaults and precedence are those of llama.cpp's ``llama-model.cpp``. Keys that change the
logits of other families there are refused by name, see `fjx.models.gguf_refusals`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fjx.errors import ModelError
from fjx.models import rope
from fjx.models.config import MAX_HEAD_DIM, MAX_LAYERS, ModelConfig
from fjx.models.gguf_refusals import refuse_other_computations
from fjx.models.metadata_fields import MetadataFields

DEFAULT_THETA = 1e4


def decoder_config(
    header: MetadataFields,
    family: str,
    tensor_names: Collection[str],
    rope_factors: Sequence[float] | None,
    **overrides: Any,
) -> ModelConfig:
    """The configuration of a decoder with gated MLPs and RoPE; families override what differs."""
    refuse_other_computations(header)
    layers, hidden_size = num_layers(header), header.size("embedding_length")
    num_heads = of_all_layers(header, "attention.head_count")
    head_dim = head_size(header)
    values: dict[str, Any] = {
        "family": family,
        "vocab_size": _vocab_size(header),
        "hidden_size": hidden_size,
        "num_layers": layers,
        "num_heads": num_heads,
        "num_kv_heads": of_all_layers(header, "attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "mlp_width": of_all_layers(header, "feed_forward_length"),
        "max_positions": header.size("context_length"),
        "norm_eps": header.positive("attention.layer_norm_rms_epsilon"),
        "tied_embeddings": "output.weight" not in tensor_names,
        "attention_scale": head_dim**-0.5,
        "qkv_bias": "blk.0.attn_q.bias" in tensor_names,
        "o_bias": "blk.0.attn_output.bias" in tensor_names,
        "mlp_bias": "blk.0.ffn_down.bias" in tensor_names,
        "attention_soft_cap": _unless_zero(header, "attn_logit_softcapping"),
        "logit_soft_cap": _unless_zero(header, "final_logit_softcapping"),
    }
    if "rope_tables" not in overrides:
        table = rope_table(header, head_dim)
        if "rope_freqs.weight" in tensor_names:
            table = _divided(table, rope_factors)
        values["rope_tables"] = (table,)
    values |= overrides
    values["attention_scale"] = _attention_scale(header, values["attention_scale"])
    return ModelConfig(**values)


def num_layers(header: MetadataFields) -> int:
    """The number of blocks."""
    return header.size("block_count", most=MAX_LAYERS)


def of_all_layers(header: MetadataFields, name: str, default: int | None = None) -> int:
    """A size that files give once, or for each layer; layers of several sizes are refused."""
    value = header.values.get(header.prefix + name)
    if not isinstance(value, list | tuple):
        return header.size(name, default)
    if len(value) != num_layers(header) or len(set(value)) != 1:
        raise ModelError(
            f"{header.where}: {header.prefix + name!r} should be one whole number, or the same "
            f"for each of {num_layers(header)} layers, but is {value!r}"
        )
    return MetadataFields({header.prefix + name: value[0]}, header.where, header.prefix).size(name)


def head_size(header: MetadataFields) -> int:
    """The size of a query, key and value head, all of which RoPE rotates."""
    by_default = header.size("embedding_length") // of_all_layers(header, "attention.head_count")
    size = header.size("attention.key_length", by_default, most=MAX_HEAD_DIM)
    for key in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
        header.refuse(key, unless=size)
    for key in ("rope.dimension_count", "rope.dimension_count_swa"):
        header.refuse(key, unless=size)
    return size


def rope_table(header: MetadataFields, head_dim: int) -> tuple[float, ...]:
    """The RoPE frequencies with the file's own scaling: linear unless it says otherwise."""
    table = rope.frequencies(head_dim, header.positive("rope.freq_base", DEFAULT_THETA))
    kind = header.text("rope.scaling.type", "linear")
    old_factor = header.number("rope.scale_linear", 0.0)
    factor = header.number("rope.scaling.factor", old_factor)
    if kind == "none" or (kind == "linear" and factor == 0):
        return table
    return rope.scaled(table, {"rope_type": kind, "factor": factor})


def windows(header: MetadataFields, period: int) -> tuple[int, ...]:
    """Each layer's window, 0 for none; empty where no layer has one.

    Args:
        header: the file's values.
        period: every this many layers one sees everything, unless the file says otherwise; 0: none
            does.
    """
    window, layers = header.integer("attention.sliding_window", 0), num_layers(header)
    if window == 0:
        return ()
    window = header.size("attention.sliding_window")
    name = "attention.sliding_window_pattern"
    pattern = header.values.get(header.prefix + name)
    if isinstance(pattern, list | tuple):
        if len(pattern) != layers or not all(isinstance(slides, bool | int) for slides in pattern):
            raise ModelError(
                f"{header.where}: {header.prefix + name!r} should say for each of {layers} layers "
                f"whether it has a window, but is {pattern!r}"
            )
        sliding = tuple(bool(slides) for slides in pattern)
    else:
        period = header.integer(name, period)
        header.refuse(name, unless=max(period, 0))
        sliding = tuple(not period or (layer + 1) % period != 0 for layer in range(layers))
    return tuple(window if slides else 0 for slides in sliding)


def refuse_windows(header: MetadataFields) -> None:
    """Raise ModelError for a window that a context can outgrow.

    llama.cpp ignores it in families whose files do not say which layers it is for.
    """
    window = header.integer("attention.sliding_window", 0)
    if 0 < window < header.size("context_length"):
        header.refuse("attention.sliding_window", unless=0)


def _attention_scale(header: MetadataFields, by_default: float) -> float:
    """The factor on the attention logits.

    ``attn_factor`` is on cosines and sines, and so twice in a product of query and key.
    """
    scale = header.number("attention.scale", 0.0) or by_default
    return scale * header.positive("rope.scaling.attn_factor", 1.0) ** 2


def _unless_zero(header: MetadataFields, name: str) -> float | None:
    return header.positive(name) if header.number(name, 0.0) else None


def _divided(table: tuple[float, ...], factors: Sequence[float] | None) -> tuple[float, ...]:
    if factors is None or len(factors) != len(table):
        found = "nothing" if factors is None else f"{len(factors)} values"
        raise ModelError(f"tensor rope_freqs.weight should hold {len(table)} values, found {found}")
    if not all(factors):
        raise ModelError("tensor rope_freqs.weight holds a zero, by which RoPE would be divided")
    return tuple(frequency / float(by) for frequency, by in zip(table, factors, strict=True))


def _vocab_size(header: MetadataFields) -> int:
    # The token list is what the embedding has rows for; vocab_size is missing in older files.
    tokens = header.values.get("tokenizer.ggml.tokens")
    return len(tokens) if tokens is not None else header.size("vocab_size")
