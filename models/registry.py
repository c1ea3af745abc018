"""All families, and which one a model file belongs to. A new family is one file and one line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fjx.errors import ModelError
from fjx.models import gemma3, llama, opt, qwen2, qwen3
from fjx.models.config import ModelConfig
from fjx.models.family import Family
from fjx.models.metadata_fields import MetadataFields

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        llama.LLAMA,
        llama.MISTRAL,
        qwen2.QWEN2,
        qwen3.QWEN3,
        gemma3.GEMMA3,
        opt.OPT,
    )
}


def config_from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """See `ModelConfig.from_hf`."""
    fields = MetadataFields(config, "config.json")
    if "quantization_config" in fields:
        raise ModelError(
            "config.json: quantized Hugging Face checkpoints (quantization_config) are not "
            "supported; use the unquantized model or a GGUF file"
        )
    family = _hf_family(fields)
    if "text_config" in fields:
        fields = MetadataFields(fields.mapping("text_config"), "config.json, text_config")
    return family.config_from_hf(fields)


def config_from_gguf(
    metadata: Mapping[str, Any],
    tensor_names: Collection[str],
    rope_factors: Sequence[float] | None,
) -> ModelConfig:
    """See `ModelConfig.from_gguf`."""
    architecture = MetadataFields(metadata, "the GGUF header").text("general.architecture")
    for family in FAMILIES.values():
        if architecture in family.gguf_architectures and family.config_from_gguf is not None:
            header = MetadataFields(metadata, "the GGUF header", prefix=f"{architecture}.")
            return family.config_from_gguf(header, tensor_names, rope_factors)
    known = (name for family in FAMILIES.values() for name in family.gguf_architectures)
    raise _unknown(architecture, known)


def _hf_family(fields: MetadataFields) -> Family:
    architectures = fields.values.get("architectures")
    if isinstance(architectures, list | tuple) and architectures:
        for family in FAMILIES.values():
            if architectures[0] in family.hf_architectures:
                return family
        known = (name for family in FAMILIES.values() for name in family.hf_architectures)
        raise _unknown(architectures[0], known)
    model_type = fields.text("model_type")
    for family in FAMILIES.values():
        if model_type in family.hf_model_types:
            return family
    known = (name for family in FAMILIES.values() for name in family.hf_model_types)
    raise _unknown(model_type, known)


def _unknown(architecture: object, known: Iterable[str]) -> ModelError:
    return ModelError(
        f"the model's architecture {architecture!r} is not supported; "
        f"supported are {', '.join(sorted(known))}"
    )
