"""Logits from between two layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.kernels.matmul import matmul
from fjx.models.logit_lens import LogitLens, map_name, mapped_layers
from fjx.models.tensors import random_tensors
from tests.unit.models.test_draft_head import TARGET, TOKEN_IDS


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_map_stands_before_the_norm(dtype: Any) -> None:
    lens = LogitLens(TARGET, TOKEN_IDS, mapped=[2])
    draw = np.random.default_rng(0)
    values = {name: lens.from_target(name, x) for name, x in random_tensors(TARGET, seed=1)}
    values[map_name(2)] = turn = draw.standard_normal((32, 32)).astype(dtype).astype(np.float32)
    specs = lens.logit_tensors() | lens.map_tensors()
    tensors = {name: specs[name].store(x, dtype) for name, x in values.items() if x is not None}
    for layers in (1, 2):
        same = jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype),
            lens.abstract_lens(dtype, layers),
            lens.pack_lens(tensors, layers),
        )
        assert all(jax.tree.leaves(same))
    logits = jax.jit(lens.logits)
    x = draw.standard_normal((5, 32)).astype(dtype).astype(np.float32)
    raw, mapped = (logits(lens.pack_lens(tensors, layers), x) for layers in (1, 2))
    assert raw.shape == mapped.shape == (5, 6)
    assert np.abs(raw - mapped).max() > 0.01
    np.testing.assert_allclose(
        mapped, logits(lens.pack_lens(tensors, 1), x @ turn), rtol=2e-2, atol=1e-3
    )


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_factors_are_what_logits_are_made_of(dtype: Any, soft_cap: float | None) -> None:
    lens = LogitLens(dataclasses.replace(TARGET, logit_soft_cap=soft_cap), TOKEN_IDS, mapped=[2])
    values = {name: lens.from_target(name, x) for name, x in random_tensors(TARGET, seed=1)}
    values[map_name(2)] = np.eye(32, dtype=np.float32) * 2
    specs = lens.logit_tensors() | lens.map_tensors()
    tensors = {name: specs[name].store(x, dtype) for name, x in values.items() if x is not None}
    x = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)

    def product(params: Any, x: Any) -> Any:
        hidden, unembed, soft_cap = lens.factors(params, x)
        logits = matmul(hidden, unembed, len(TOKEN_IDS))
        return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)

    for layers in (1, 2):
        params = lens.pack_lens(tensors, layers)
        np.testing.assert_array_equal(jax.jit(product)(params, x), jax.jit(lens.logits)(params, x))


def test_maps_are_found_by_their_names() -> None:
    assert mapped_layers(["lens.12", "lens.3", "fuse.project", "lens.x", "token_ids"]) == [3, 12]
    assert LogitLens(TARGET, TOKEN_IDS, mapped=[2, 1]).map_tensors().keys() == {"lens.1", "lens.2"}
