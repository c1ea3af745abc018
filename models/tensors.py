"""The canonical tensors of a model: what every checkpoint format is reduced to.

The names are ``embed.tokens``, ``layers.{i}.qkv``, ``head.unembed``, and the like; matrices are
stored (in, out), query/key/value and gate/up are fused, norm weights are the factor that is
applied.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from fjx.models.config import ModelConfig
from fjx.models.registry import FAMILIES
from fjx.models.split import SplitModule, TensorSpec


def canonical_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of the model, by name: the embedding, the head, the layers in order.

    The largest come first: what loading one of them takes for a moment is gone before the layers
    are there.
    """
    family = FAMILIES[config.family]
    block = SplitModule(family.block(config)).tensors
    tensors = {
        f"embed.{name}": spec for name, spec in SplitModule(family.embed(config)).tensors.items()
    }
    head = SplitModule(family.head(config)).tensors
    tensors |= {f"head.{name}": spec for name, spec in head.items()}
    for layer in range(config.num_layers):
        tensors |= {f"layers.{layer}.{name}": spec for name, spec in block.items()}
    return tensors


def canonical_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the model, by name."""
    return {name: spec.shape for name, spec in canonical_tensors(config).items()}


def random_tensors(
    config: ModelConfig, seed: int, scale: float = 0.02
) -> Iterator[tuple[str, np.ndarray]]:
    """Draw a random model, one float32 tensor at a time.

    Entries are normal with standard deviation ``scale``, around 1 for the factors of norms and
    around 0 otherwise. A tensor depends on its name and the seed only; a tied head is the
    embedding.
    """
    for name, shape in canonical_shapes(config).items():
        tied = name == "head.unembed" and config.tied_embeddings
        drawn_as, drawn_shape = ("embed.tokens", shape[::-1]) if tied else (name, shape)
        generator = np.random.default_rng([seed, zlib.crc32(drawn_as.encode())])
        tensor = scale * generator.standard_normal(drawn_shape, np.float32)
        if name.endswith("norm"):
            tensor += 1
        yield name, np.ascontiguousarray(tensor.T) if tied else tensor
