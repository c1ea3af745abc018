"""What a family of models brings: how its files are read and how its blocks are wired."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from flax import nnx

from fjx.models.config import ModelConfig
from fjx.models.metadata_fields import MetadataFields

ReadHf = Callable[[MetadataFields], ModelConfig]
ReadGguf = Callable[[MetadataFields, Collection[str], Sequence[float] | None], ModelConfig]


@dataclass(frozen=True)
class Family:
    """One entry of the registry."""

    name: str
    hf_architectures: tuple[str, ...]
    """Values of ``architectures`` in a config.json."""
    hf_model_types: tuple[str, ...]
    """Values of ``model_type``, read where ``architectures`` is absent."""
    gguf_architectures: tuple[str, ...]
    """Values of ``general.architecture``; empty where GGUF does not have the family."""
    config_from_hf: ReadHf
    config_from_gguf: ReadGguf | None
    embed: Callable[[ModelConfig], nnx.Module]
    block: Callable[[ModelConfig], nnx.Module]
    head: Callable[[ModelConfig], nnx.Module]
