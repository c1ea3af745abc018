"""The target as training sees it: its residual stream, its embedding and what its head needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from fjx.distill.config import DistillConfig
from fjx.distill.corpus import TargetSample
from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.matmul import multiplies_bfloat16
from fjx.kernels.ragged import RaggedRows
from fjx.models.config import ModelConfig
from fjx.models.granules import Model, Params
from fjx.models.loading.draft_head_file import Fingerprint
from fjx.models.loading.load import load_model_config, load_params
from fjx.models.loading.source import resolve
from fjx.models.reduced_head import ReducedHead
from fjx.models.tensors import canonical_tensors

_ROWS = 1024
"""Rows of one pass over the target."""
_PAGE_SIZE = 16


class DistillTarget:
    """A target with its weights, run over whole sequences by the engine's own kernels.

    Args:
        config: the model's configuration.
        dtype: of weights and products.
        read: hands every canonical tensor to the function that it is given.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: jnp.dtype,
        read: Callable[[Callable[[str, np.ndarray], None]], None],
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.host: dict[str, np.ndarray] = {}
        """Canonical tensors of the last block and the head."""
        self._model = Model(config, granule_layers=1)
        fingerprint, specs = Fingerprint(config), canonical_tensors(config)
        last = f"layers.{config.num_layers - 1}."
        tensors: dict[str, Any] = {}

        def take(name: str, values: np.ndarray) -> None:
            fingerprint.take(name, values)
            if name.startswith(("head.", last)):
                self.host[name] = values.astype(np.float32)
            if not name.startswith("head."):
                tensors[name] = jnp.asarray(specs[name].store(values, dtype))

        read(take)
        self.fingerprint = fingerprint.digest()
        self.embed_params = self._model.pack_embed(tensors)
        self._layers = [
            self._model.pack_granule(layer, tensors) for layer in range(config.num_layers)
        ]
        self._run = jax.jit(self._streams, static_argnums=0)

    def embed(
        self, params: Any, tokens: Int32[Array, " T"], rows: RaggedRows
    ) -> Float[Array, "T D"]:
        """The embedding of tokens, with ``embed_params``; may be traced."""
        return self._model.embed(params, tokens, rows)

    def logit_params(self, head: ReducedHead) -> Params:
        """Parameters of a head's logits, from the target's own tensors."""
        specs = head.logit_tensors()
        return head.pack_logits(
            {
                name: jnp.asarray(specs[name].store(taken, self.dtype))
                for name, values in self.host.items()
                if (taken := head.from_target(name, values)) is not None
            }
        )

    def passes(
        self, samples: Sequence[TargetSample], after: Sequence[int]
    ) -> Iterator[tuple[list[int], Float[np.ndarray, "G T D"]]]:
        """Run the target over samples, as many at a time as fit.

        Args:
            samples: whole sequences.
            after: behind how many layers the residual stream is wanted, increasing; behind all of
                them is before the final norm.

        Yields:
            Lengths of the next samples, and the residual streams of all their tokens, side by side.
        """
        longest = max((len(sample.tokens) for sample in samples), default=1)
        most = max(_ROWS, longest)
        batch: list[TargetSample] = []
        for sample in samples:
            if sum(len(each.tokens) for each in batch) + len(sample.tokens) > most:
                yield self._pass(batch, most, longest, tuple(after))
                batch = []
            batch.append(sample)
        if batch:
            yield self._pass(batch, most, longest, tuple(after))

    def _pass(
        self, batch: list[TargetSample], rows: int, longest: int, after: tuple[int, ...]
    ) -> tuple[list[int], np.ndarray]:
        lengths = [len(sample.tokens) for sample in batch]
        tokens = np.zeros(rows, np.int32)
        tokens[: sum(lengths)] = np.concatenate([sample.tokens for sample in batch])
        params = self.embed_params, self._layers
        streams = self._run(after, params, tokens, whole_requests(lengths, rows, longest))
        return lengths, np.asarray(streams)[:, : sum(lengths)]

    def _streams(
        self, after: tuple[int, ...], params: Any, tokens: Array, rows: RaggedRows
    ) -> Array:
        embed, layers = params
        config = self.config
        x, wanted = self._model.embed(embed, tokens, rows), []
        shape = kv_pages_shape(
            1, int(rows.page_table.size), _PAGE_SIZE, config.num_kv_heads, config.head_dim
        )
        for layer in range(max(after)):
            if layer in after:
                wanted.append(x)
            kv_pages = jnp.zeros(shape, kv_storage_dtype(self.dtype))
            x, _ = self._model.granule(layers[layer], x, kv_pages, rows)
        return jnp.stack([*wanted, x])


def whole_requests(lengths: Sequence[int], rows: int, longest: int) -> RaggedRows:
    """Rows of requests that are computed from their first token to their last, padded.

    Their number is padded by a power of two, and each has pages for ``longest`` tokens.
    """
    requests = 1 << (len(lengths) - 1).bit_length()
    counts = np.zeros(requests, np.int32)
    counts[: len(lengths)] = lengths
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    positions = np.zeros(rows, np.int32)
    request_of = np.full(rows, -1, np.int32)
    request_of[: starts[-1]] = np.repeat(np.arange(requests), counts)
    positions[: starts[-1]] = np.arange(starts[-1]) - starts[request_of[: starts[-1]]]
    each = -(-longest // _PAGE_SIZE)
    table = np.arange(requests * each, dtype=np.int32).reshape(requests, each)
    return RaggedRows(positions, request_of, starts, counts, table)  # type: ignore[arg-type]


def open_target(config: DistillConfig, progress: bool = True) -> DistillTarget:
    """Load the target.

    Raises:
        UserError: the model cannot be had.
    """
    source = resolve(config.model, config.revision, config.cache_dir)
    model_config = load_model_config(source)
    name = config.dtype
    if name == "auto":
        name = "bfloat16" if multiplies_bfloat16() else "float32"
    return DistillTarget(
        model_config,
        jnp.dtype(name),
        lambda take: load_params(source, model_config, take, progress=progress),
    )
