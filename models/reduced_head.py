"""Part of a target's head: its final norm and some columns of its unembedding.

A draft head needs logits of the tokens that it can draft, and a look into the layers of the target
(a *logit lens*) those of the tokens that a draft competes with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from fjx.models.config import ModelConfig
from fjx.models.granules import Model, Params
from fjx.models.split import TensorSpec


class Factors(NamedTuple):
    """Logits before they are multiplied."""

    hidden: Float[Array, "S D"]
    """Normed rows, float32."""
    unembed: Array
    """A (D, V) matrix as `fjx.kernels.matmul.stored_values` gives it."""
    soft_cap: float | None
    """Logits become ``soft_cap * tanh(logits / soft_cap)``."""


class ReducedHead:
    """Logits of some tokens of a target's vocabulary; holds no arrays but their ids.

    Its parameters are on each device of a mesh as a whole.
    """

    def __init__(self, target: ModelConfig, token_ids: Int32[np.ndarray, " V"]) -> None:
        """``token_ids``: what each of the logits is of, in the target's vocabulary."""
        self.token_ids = token_ids
        self.config = head_config(target, len(token_ids))
        self._block = Model(self.config, granule_layers=1)

    def logit_tensors(self) -> dict[str, TensorSpec]:
        """Canonical tensors of `logits`, by full name: ``head.*``."""
        return self._block.head_tensors()

    def from_target(self, name: str, values: np.ndarray) -> np.ndarray | None:
        """One of the tensors ``head.*`` from the target's tensor of this name; None where it
        is of no use."""
        if name == "head.unembed":
            return np.ascontiguousarray(values[:, self.token_ids])
        return values if name in self.logit_tensors() else None

    def pack_logits(self, tensors: Mapping[str, Any]) -> Params:
        """Parameters of `logits` from canonical tensors."""
        return self._block.pack_head(tensors)

    def abstract_logits(self, dtype: jnp.dtype) -> Params:
        """Shapes of `pack_logits`'s result."""
        return self._block.abstract_head(dtype)

    def logits(self, params: Params, h: Float[Array, "S D"]) -> Float[Array, "S V"]:
        """Logits of its tokens, from a residual stream or an estimate of one."""
        return self._block.head(params, h)

    def factors(self, params: Params, h: Float[Array, "S D"]) -> Factors:
        """What `logits` are made of, for whoever needs no logits."""
        return Factors(self._block.normed(params, h), params["unembed"], self.config.logit_soft_cap)


def head_config(target: ModelConfig, vocabulary: int) -> ModelConfig:
    """The configuration of the head's block: a layer of the target that sees all positions, where
    there is one."""
    windows = target.window_of_layer or (0,) * target.num_layers
    like = windows.index(0) if 0 in windows else target.num_layers - 1
    tables = target.rope_tables
    if tables:
        tables = (tables[target.rope_of_layer[like] if target.rope_of_layer else 0],)
    return dataclasses.replace(
        target,
        num_layers=1,
        vocab_size=vocabulary,
        tied_embeddings=False,
        quantization=None,
        rope_tables=tables,
        rope_of_layer=(),
        window_of_layer=(windows[like],) if windows[like] else (),
    )
