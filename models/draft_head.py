"""A draft head: one block over the target's last hidden state, which foresees the next one.

From the target's residual stream x_t before the final norm, and the embedding of token t+1, the
head estimates x_{t+1}. The target's own final norm and some columns of its unembedding turn that
into logits of token t+2. Its estimates, fed back, give the tokens after that (EAGLE, Li et al.
2024, arXiv:2401.15077). The block is of the target's own family and runs on the same kernels.

Row t of the head has position t in its request and writes keys and values of its own into slot t:
the head's KV memory has one layer, and the page ids of the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from fjx.kernels.ragged import RaggedRows
from fjx.models.config import ModelConfig
from fjx.models.granules import Params
from fjx.models.layers import Linear, RMSNorm
from fjx.models.reduced_head import ReducedHead
from fjx.models.split import SplitModule, TensorSpec


class Fuse(nnx.Module):
    """The residual stream and the next token's embedding, each normed, to one row of the stream."""

    def __init__(self, config: ModelConfig) -> None:
        D = config.hidden_size
        self.hidden_norm = RMSNorm(D, config.norm_eps)
        self.embedding_norm = RMSNorm(D, config.norm_eps)
        self.project = Linear(2 * D, D, ("embed", "embed"))

    def __call__(
        self, x: Float[Array, "T D"], next_embeddings: Float[Array, "T D"]
    ) -> Float[Array, "T D"]:
        """Fuse each row."""
        normed = (self.hidden_norm(x), self.embedding_norm(next_embeddings))
        return self.project(jnp.concatenate(normed, axis=-1))


class DraftHead(ReducedHead):
    """The programs of one draft head and the shapes of their parameters."""

    def __init__(self, target: ModelConfig, token_ids: Int32[np.ndarray, " V"]) -> None:
        """``token_ids``: what each of the head's logits is of, in the target's vocabulary."""
        super().__init__(target, token_ids)
        self._fuse = SplitModule(Fuse(self.config))

    # What it is made of.

    def tensors(self) -> dict[str, TensorSpec]:
        """Canonical tensors, by full name: those of `trained_tensors` and `logit_tensors`."""
        return self.trained_tensors() | self.logit_tensors()

    def trained_tensors(self) -> dict[str, TensorSpec]:
        """The tensors that are the head's own: ``fuse.*`` and ``layers.0.*``."""
        fuse = {f"fuse.{name}": spec for name, spec in self._fuse.tensors.items()}
        return fuse | self._block.granule_tensors(0)

    def pack_feed(self, tensors: Mapping[str, Any]) -> Params:
        """Parameters of `feed` from canonical tensors, stored as their specs say."""
        fuse = {name: tensors[f"fuse.{name}"] for name in self._fuse.tensors}
        return {"fuse": fuse, "block": self._block.pack_granule(0, tensors)}

    def abstract_feed(self, dtype: jnp.dtype) -> Params:
        """Shapes of `pack_feed`'s result for a head stored in ``dtype``."""
        fuse = {name: spec.struct(dtype) for name, spec in self._fuse.tensors.items()}
        return {"fuse": fuse, "block": self._block.abstract_granule(0, dtype)}

    # The programs.

    def feed(
        self,
        params: Params,
        x: Float[Array, "T D"],
        next_embeddings: Float[Array, "T D"],
        kv_pages: Array,
        rows: RaggedRows,
    ) -> tuple[Float[Array, "T D"], Array]:
        """Estimate the residual stream at the position after each row's.

        Args:
            params: from `pack_feed`.
            x: the target's residual stream before its final norm, or the head's estimate of it.
            next_embeddings: `Model.embed` of the token after each row's, at the row's position.
            kv_pages: the head's pages, see `fjx.kernels.attention.kv_pages_shape`, of one layer;
                donate them.
            rows: the ragged batch.

        Returns:
            The estimates, and the pages after these rows.
        """
        fused = self._fuse.merge(params["fuse"])(x, next_embeddings)
        return self._block.granule(params["block"], fused, kv_pages, rows)
