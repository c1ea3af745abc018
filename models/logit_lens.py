"""What a target is about to choose, seen from between its layers: a *logit lens*.

The residual stream behind some layers goes through the target's own final norm and some columns of
its unembedding (nostalgebraist 2020). Where one is there, a linear map first turns it into an
estimate of the stream behind the last layer (Belrose et al. 2023, arXiv:2303.08112).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from fjx.models.config import ModelConfig
from fjx.models.granules import Params
from fjx.models.layers import Linear
from fjx.models.reduced_head import Factors, ReducedHead
from fjx.models.split import SplitModule, TensorSpec


class _Map(nnx.Module):
    """From the residual stream behind some layer to an estimate of the last one's."""

    def __init__(self, config: ModelConfig) -> None:
        self.map = Linear(config.hidden_size, config.hidden_size, ("embed", "embed"))

    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """Map each row."""
        return self.map(x)


class LogitLens(ReducedHead):
    """Logits of some tokens from the residual stream between layers; holds no arrays but their ids.

    Its parameters are on each device of a mesh as a whole.
    """

    def __init__(
        self,
        target: ModelConfig,
        token_ids: Int32[np.ndarray, " V"],
        mapped: Collection[int] = (),
    ) -> None:
        """
        Args:
            target: the target's configuration.
            token_ids: what each of the logits is of, in the target's vocabulary.
            mapped: behind how many layers there are maps.
        """
        super().__init__(target, token_ids)
        self.mapped = frozenset(mapped)
        self._map = SplitModule(_Map(target))

    def map_tensors(self) -> dict[str, TensorSpec]:
        """Canonical tensors of the maps, by full name."""
        return {map_name(layers): self._map.tensors["map"] for layers in sorted(self.mapped)}

    def pack_lens(self, tensors: Mapping[str, Any], layers: int) -> Params:
        """Parameters of `logits` behind the first ``layers`` layers, from canonical tensors, stored
        as their specs say: those of `logit_tensors`, and the map if there is one."""
        packed = self.pack_logits(tensors)
        if layers in self.mapped:
            packed = packed | {"map": tensors[map_name(layers)]}
        return packed

    def abstract_lens(self, dtype: jnp.dtype, layers: int) -> Params:
        """Shapes of `pack_lens`'s result."""
        packed = self.abstract_logits(dtype)
        if layers in self.mapped:
            packed = packed | {"map": self._map.tensors["map"].struct(dtype)}
        return packed

    def logits(self, params: Params, h: Float[Array, "S D"]) -> Float[Array, "S V"]:
        """Logits of its tokens, from the residual stream that ``params`` are for."""
        return super().logits(*self._mapped(params, h))

    def factors(self, params: Params, h: Float[Array, "S D"]) -> Factors:
        """What `logits` are made of, likewise."""
        return super().factors(*self._mapped(params, h))

    def _mapped(self, params: Params, h: Float[Array, "S D"]) -> tuple[Params, Float[Array, "S D"]]:
        """What is left to do behind the map, and its estimates."""
        if "map" not in params:
            return params, h
        estimates = self._map.merge({"map": params["map"]})(h)
        return {name: x for name, x in params.items() if name != "map"}, estimates


def map_name(layers: int) -> str:
    """The canonical name of the map behind the first ``layers`` layers."""
    return f"lens.{layers}"


def mapped_layers(tensors: Collection[str]) -> list[int]:
    """Behind how many layers these canonical tensors hold a map."""
    found = (name.removeprefix("lens.") for name in tensors if name.startswith("lens."))
    return sorted(int(layers) for layers in found if layers.isdecimal())
