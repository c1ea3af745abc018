"""The draft head as training runs it: several passes, each on the estimates of the one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fjx.distill.differentiable import attend_windows, differentiable, shifted_rows
from fjx.distill.loss import hidden_loss, soft_cross_entropy
from fjx.distill.target import DistillTarget
from fjx.distill.windows import WindowBatch
from fjx.kernels.ragged import RaggedRows
from fjx.models.draft_head import DraftHead
from fjx.models.registry import FAMILIES
from fjx.models.split import SplitModule

PASS_DECAY = 0.8
"""Weight of a pass relative to the one before: later draft positions are reached less often."""

Tensors = Mapping[str, Array]


class UnrolledHead:
    """The losses of a draft head over batches of windows, in as many passes as their weights are
    for; it holds no arrays.

    Row t of pass s is fed the estimate that row t - 1 of pass s - 1 made of x_t, and the true token
    t + 1: what a draft position s sees where all drafted tokens before it were right.
    """

    def __init__(
        self, head: DraftHead, target: DistillTarget, *, length: int, hidden_weight: float
    ) -> None:
        self.head = head
        self._embed = target.embed
        self._dtype = target.dtype
        self._length = length
        self._hidden_weight = hidden_weight
        self._head_module = SplitModule(FAMILIES[head.config.family].head(head.config))

    def frozen(self, target: DistillTarget) -> dict[str, Any]:
        """What losses read of the target: its embedding, and what the head takes from its head."""
        of_head = {
            name: self.head.from_target(name, values) for name, values in target.host.items()
        }
        stored = {
            name: jnp.asarray(values, self._stored_dtype(values))
            for name, values in of_head.items()
            if values is not None
        }
        return {"embed": target.embed_params, "head": self.head.pack_logits(stored)}

    def estimates(self, trained: Tensors, frozen: Any, batch: WindowBatch) -> Float[Array, "S T D"]:
        """Each pass's estimates of the residual stream after each row."""
        stored = {name: x.astype(self._stored_dtype(x)) for name, x in trained.items()}
        params = self.head.pack_feed(stored)
        rows = RaggedRows(batch.positions, batch.request_of, *[jnp.zeros(1, jnp.int32)] * 3)  # type: ignore[arg-type]
        embedded = self._embed(frozen["embed"], jnp.asarray(batch.next_tokens), rows)
        x, earlier = jnp.asarray(batch.hidden, jnp.float32), ()
        passes = []
        with differentiable(attend_windows(self._length)):
            for _ in range(len(batch.weights)):
                h, earlier = self.head.feed(params, x, embedded, earlier, rows)  # type: ignore[arg-type, assignment]
                passes.append(h)
                x = shifted_rows(h, self._length, 1)
        return jnp.stack(passes)

    def losses(
        self, trained: Tensors, frozen: Any, batch: WindowBatch
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The loss of a batch, and by pass: mean ``cross_entropy``, mean ``hidden`` loss, and the
        share of rows that ``agree``: whose most likely token is the one that came."""
        normed, next_normed, unembed, soft_cap = self._normed(trained, frozen, batch)
        known = jnp.asarray(batch.targets) >= 0
        weights = jnp.asarray(batch.weights)
        sums, chosen = soft_cross_entropy(normed, next_normed, unembed, weights * known, soft_cap)
        rows = jnp.maximum(weights.sum(axis=1), 1)
        cross_entropy = sums / jnp.maximum((weights * known).sum(axis=1), 1)
        hidden = hidden_loss(normed, next_normed, weights) / rows
        agree = (weights * (chosen == batch.targets)).sum(axis=1) / rows
        of_pass = cross_entropy + self._hidden_weight * hidden
        decay = PASS_DECAY ** np.arange(len(batch.weights))
        loss = jnp.sum(of_pass * decay) / decay.sum()
        return loss, {"cross_entropy": cross_entropy, "hidden": hidden, "agree": agree}

    def agreement(self, trained: Tensors, frozen: Any, batch: WindowBatch) -> Array:
        """For each pass and row with a loss, whether the head's most likely token is the one that
        came, (S, N) bool."""
        normed, next_normed, unembed, soft_cap = self._normed(trained, frozen, batch)
        _, chosen = soft_cross_entropy(
            normed, next_normed, unembed, jnp.asarray(batch.weights), soft_cap
        )
        agrees: Array = chosen == jnp.asarray(batch.targets)
        return agrees

    def _normed(
        self, trained: Tensors, frozen: Any, batch: WindowBatch
    ) -> tuple[Array, Array, Array, float | None]:
        """Estimates and true hidden states behind the final norm, and what makes logits of them."""
        estimates = self.estimates(trained, frozen, batch)[:, batch.loss_rows]
        module = self._head_module.merge(frozen["head"])
        with differentiable(attend_windows(self._length)):
            normed = module.norm(estimates)
            next_normed = module.norm(jnp.asarray(batch.next_hidden, jnp.float32))
        return normed, next_normed, module.unembed.weight[...], module.soft_cap

    def _stored_dtype(self, x: Array | np.ndarray) -> Any:
        return self._dtype if x.ndim > 1 else jnp.float32
