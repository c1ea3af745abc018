"""The head in training is the head in serving."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.distill.unrolled import UnrolledHead
from fjx.distill.windows import WindowBatch
from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.ragged import RaggedRows
from fjx.models.config import ModelConfig
from fjx.models.draft_head import DraftHead
from fjx.models.granules import Model
from fjx.models.rope import frequencies
from fjx.models.tensors import canonical_tensors, random_tensors
from tests.unit.distill.tiny_target import CONFIG

GEMMA3 = dataclasses.replace(
    CONFIG,
    family="gemma3",
    activation="gelu_tanh",
    qk_norm=True,
    embed_scale=32**0.5,
    rope_tables=(frequencies(16, 1e6), frequencies(16, 1e4)),
    rope_of_layer=(1, 1, 1),
    window_of_layer=(5, 5, 5),
    attention_soft_cap=20.0,
    logit_soft_cap=30.0,
)
OPT = dataclasses.replace(
    CONFIG,
    family="opt",
    num_kv_heads=4,
    activation="relu",
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    rope_tables=(),
)
CONFIGS = {"llama": CONFIG, "gemma3": GEMMA3, "opt": OPT}
LENGTH, PASSES = 16, 4
SIZES = (9, 5, 12)  # of the requests: the first two share a window
TOKEN_IDS = np.arange(3, 103, dtype=np.int32)


class Case:
    """A target and a head with random weights, and requests with random hidden states."""

    def __init__(self, config: ModelConfig) -> None:
        drawn = dict(random_tensors(config, seed=1, scale=0.3))
        specs = canonical_tensors(config)
        self.model = Model(config)
        self.embed = self.model.pack_embed(
            {
                name: jnp.asarray(specs[name].store(drawn[name], jnp.float32))
                for name in self.model.embed_tensors()
            }
        )
        self.head = DraftHead(config, TOKEN_IDS)
        generator = np.random.default_rng(2)
        self.trained = {
            name: 0.3 * generator.standard_normal(spec.shape, np.float32)
            for name, spec in self.head.trained_tensors().items()
        }
        self.host = {name: x for name, x in drawn.items() if name.startswith("head.")}
        self.hidden = [
            generator.standard_normal((n, config.hidden_size), np.float32) for n in SIZES
        ]
        self.tokens = [generator.integers(0, 200, n + 1).astype(np.int32) for n in SIZES]
        self.target: Any = SimpleNamespace(
            embed=self.model.embed,
            embed_params=self.embed,
            dtype=jnp.dtype(jnp.float32),
            host=self.host,
        )

    def unrolled(self) -> UnrolledHead:
        return UnrolledHead(self.head, self.target, length=LENGTH, hidden_weight=1.0)

    def batch(self) -> WindowBatch:
        hidden = np.zeros((2 * LENGTH, self.head.config.hidden_size), np.float32)
        tokens, positions = np.zeros((2, 2 * LENGTH), np.int32)
        request_of = np.full(2 * LENGTH, -1, np.int32)
        for request, row in enumerate(STARTS):
            mine = slice(row, row + SIZES[request])
            hidden[mine] = self.hidden[request]
            tokens[mine] = self.tokens[request][1:]
            positions[mine] = np.arange(SIZES[request])
            request_of[mine] = request
        rows = np.arange(2 * LENGTH, dtype=np.int32)
        weights = np.array(
            [(request_of >= 0) & (positions >= s) for s in range(PASSES)], np.float32
        )
        targets = rows % len(TOKEN_IDS)
        return WindowBatch(
            hidden, tokens, positions, request_of, rows, hidden[::-1].copy(), targets, weights
        )

    def served(self, request: int, true_rows: int) -> list[np.ndarray]:
        """Feed so many true rows of a request, then the head's own estimates."""
        specs = self.head.tensors()
        params = self.head.pack_feed(
            {
                name: jnp.asarray(specs[name].store(x, jnp.float32))
                for name, x in self.trained.items()
            }
        )
        config = self.head.config
        shape = kv_pages_shape(1, 4, 16, config.num_kv_heads, config.head_dim)
        pages = jnp.zeros(shape, kv_storage_dtype(jnp.dtype(jnp.float32)))
        feed, x, begin, estimates = jax.jit(self.head.feed), self.hidden[request], 0, []
        x = x[:true_rows]
        while begin < SIZES[request] and len(estimates) < PASSES:
            end = begin + len(x)
            rows = RaggedRows(
                *(
                    jnp.array(each, jnp.int32)
                    for each in (range(begin, end), [0] * len(x), [0, len(x)], [end], [[2]])
                )
            )
            embedded = self.model.embed(
                self.embed, jnp.asarray(self.tokens[request][begin + 1 : end + 1]), rows
            )
            h, pages = feed(params, jnp.asarray(x), embedded, pages, rows)
            estimates.append(np.asarray(h))
            x, begin = estimates[-1][-1:], end
        return estimates


STARTS = (0, 9, 16)


@pytest.mark.parametrize("family", CONFIGS)
def test_training_computes_what_serving_does(family: str) -> None:
    case = Case(CONFIGS[family])
    unrolled = case.unrolled()
    passes = np.asarray(
        jax.jit(unrolled.estimates)(case.trained, unrolled.frozen(case.target), case.batch())
    )
    for request, start in enumerate(STARTS):
        for true_rows in (1, SIZES[request] // 2, SIZES[request]):
            first, *drafted = case.served(request, true_rows)
            scale = np.abs(first).max()
            np.testing.assert_allclose(
                passes[0, start : start + true_rows], first, rtol=0, atol=1e-5 * scale
            )
            for number, h in enumerate(drafted, start=1):
                row = start + true_rows - 1 + number
                np.testing.assert_allclose(passes[number, row], h[0], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("family", CONFIGS)
def test_derivatives_are_those_of_the_loss(family: str) -> None:
    case = Case(CONFIGS[family])
    unrolled, batch = case.unrolled(), case.batch()
    frozen = unrolled.frozen(case.target)
    loss = jax.jit(lambda trained: unrolled.losses(trained, frozen, batch)[0])
    gradient = jax.grad(loss)(case.trained)
    generator = np.random.default_rng(5)
    for name in ("fuse.project", "layers.0.qkv", "layers.0.o"):
        way = generator.standard_normal(case.trained[name].shape).astype(np.float32)
        slope = float((np.asarray(gradient[name]) * way).sum())
        step = 1e-3

        def at(size: float, name: str = name, way: np.ndarray = way) -> float:
            return float(loss({**case.trained, name: case.trained[name] + size * way}))

        measured = (at(step) - at(-step)) / (2 * step)
        assert slope == pytest.approx(measured, rel=0.05, abs=2e-3)
