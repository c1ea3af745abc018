"""Runs a small model over ragged batches the way the engine does, without scheduler or sampling."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fjx.kernels.attention import kv_pages_shape
from fjx.kernels.ragged import RaggedRows
from fjx.models.granules import Model

PAGE_SIZE = 16  # what the fast CPU kernel takes
PAGES_PER_REQUEST = 4


class PagedModel:
    """A model with its KV pages; ``requests`` requests own shuffled pages and grow side by side."""

    def __init__(
        self,
        model: Model,
        tensors: Mapping[str, jax.Array],
        requests: int,
    ) -> None:
        config = model.config
        pages = requests * PAGES_PER_REQUEST
        shuffled = np.random.default_rng(7).permutation(pages).astype(np.int32)
        self.page_table = shuffled.reshape(requests, PAGES_PER_REQUEST)
        self.context_len = np.zeros(requests, np.int32)
        self.kv_pages = [
            jnp.zeros(
                kv_pages_shape(len(layers), pages, PAGE_SIZE, config.num_kv_heads, config.head_dim)
            )
            for layers in model.granules
        ]
        self.embed_params = model.pack_embed(tensors)
        self.granule_params = [
            model.pack_granule(index, tensors) for index in range(len(model.granules))
        ]
        self.head_params = model.pack_head(tensors)
        self.embed = jax.jit(model.embed)
        self.granule = jax.jit(model.granule, donate_argnums=2)
        self.head = jax.jit(model.head)

    def step(self, new_tokens: Sequence[np.ndarray], padded: int) -> list[np.ndarray]:
        """Append each request's new tokens (maybe none); the logits after each of them."""
        counts = np.array([len(tokens) for tokens in new_tokens])
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        tokens, positions = np.zeros((2, padded), np.int32)
        request_of = np.full(padded, -1, np.int32)
        for request, new in enumerate(new_tokens):
            mine = slice(starts[request], starts[request + 1])
            tokens[mine], request_of[mine] = new, request
            positions[mine] = self.context_len[request] + np.arange(len(new))
        self.context_len += counts.astype(np.int32)
        context_len = np.where(counts > 0, self.context_len, 0).astype(np.int32)
        rows = RaggedRows(
            *map(jnp.asarray, (positions, request_of, starts, context_len, self.page_table))
        )
        x = self.embed(self.embed_params, jnp.asarray(tokens), rows)
        for index, params in enumerate(self.granule_params):
            x, self.kv_pages[index] = self.granule(params, x, self.kv_pages[index], rows)
        logits = np.asarray(self.head(self.head_params, x))
        return [logits[start:end] for start, end in itertools.pairwise(starts)]
