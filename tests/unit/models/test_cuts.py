"""Where a model may be cut: planted leaks are found, and every family is legal at every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fjx.errors import ModelError
from fjx.models.config import ModelConfig
from fjx.models.cuts import Input, check_cuts, illegal_cuts, live_across, mark, trace_layers
from fjx.models.granules import Model
from fjx.models.layers import BlockInputs
from fjx.models.llama import LLAMA, LlamaBlock
from fjx.models.registry import FAMILIES
from fjx.models.rope import frequencies

BASE = ModelConfig(
    family="llama",
    vocab_size=96,
    hidden_size=64,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=96,
    max_positions=64,
    norm_eps=1e-5,
    tied_embeddings=True,
    attention_scale=16**-0.5,
    rope_tables=(frequencies(16, 1e4),),
)
BIASED = dataclasses.replace(BASE, qkv_bias=True, o_bias=True, mlp_bias=True)
TWO_WINDOWS = dataclasses.replace(
    BASE,
    qk_norm=True,
    rope_tables=(frequencies(16, 1e6), frequencies(16, 1e4)),
    rope_of_layer=(1, 1, 0, 1, 1, 0),
    window_of_layer=(8, 8, 0, 8, 8, 0),
    attention_soft_cap=20.0,
    logit_soft_cap=30.0,
)
CONFIG_OF_FAMILY = {
    "llama": BASE,
    "mistral": dataclasses.replace(BASE, window_of_layer=(8,) * 6, tied_embeddings=False),
    "qwen2": BIASED,
    "qwen3": dataclasses.replace(BASE, qk_norm=True),
    "gemma3": dataclasses.replace(TWO_WINDOWS, activation="gelu_tanh", embed_scale=8.0),
    "opt": dataclasses.replace(BIASED, num_kv_heads=4, activation="relu", rope_tables=()),
}

Layer = Callable[[int, jax.Array, jax.Array, dict[str, Any]], jax.Array]
"""A toy layer: its index, its parameter, the stream, and what the layers before left behind."""


def add(layer: int, weight: jax.Array, x: jax.Array, left: dict[str, Any]) -> jax.Array:
    return x + weight


def toy(run_layer: Layer, layers: int = 5) -> Any:
    """What crosses the boundaries of a toy model whose layers may leave things behind."""

    def whole(weights: list[jax.Array], positions: jax.Array) -> jax.Array:
        left: dict[str, Any] = {"positions": positions, "weights": weights}
        x = weights[0]  # the embedding
        for layer, weight in enumerate(weights[1:]):
            x = run_layer(layer, weight, mark(x, layer), left)
        return mark(x, layers) * 2

    array = jax.ShapeDtypeStruct((4,), jnp.float32)
    traced = jax.make_jaxpr(whole)([array] * (layers + 1), array)
    inputs = [Input(f"w{piece}", piece) for piece in range(layers + 1)]
    return live_across(traced, [*inputs, Input("positions", None)])


def illegal(boundaries: Any) -> list[int]:
    """The boundaries that something beside the marked value crosses."""
    return [at for at, boundary in boundaries.items() if set(boundary.live) != set(boundary.marked)]


def test_a_chain_of_layers_may_be_cut_anywhere() -> None:
    boundaries = toy(add)
    assert list(boundaries) == [0, 1, 2, 3, 4, 5]
    assert illegal(boundaries) == []


def test_a_skip_connection_forbids_the_cuts_that_it_spans() -> None:
    def skip(layer: int, weight: jax.Array, x: jax.Array, left: dict[str, Any]) -> jax.Array:
        if layer == 1:
            left["early"] = x * 3  # needed again in layer 3
        return x + weight * left["early"] if layer == 3 else x + weight

    assert illegal(toy(skip)) == [2, 3]


def test_a_late_use_of_an_early_residual_stream_is_a_skip_connection() -> None:
    def skip(layer: int, weight: jax.Array, x: jax.Array, left: dict[str, Any]) -> jax.Array:
        left[f"stream {layer}"] = x
        return x + left["stream 1"] if layer == 3 else x + weight

    # At boundary 1 it is the residual stream itself.
    assert illegal(toy(skip)) == [2, 3]


def test_a_layer_that_returns_its_input_changes_nothing() -> None:
    def identity(layer: int, weight: jax.Array, x: jax.Array, left: dict[str, Any]) -> jax.Array:
        return x if layer in (1, 2) else x + weight

    assert illegal(toy(identity)) == []


@pytest.mark.parametrize(("owner", "user"), [(1, 3), (3, 1)])
@pytest.mark.parametrize("owner_uses_it", [True, False])
def test_a_parameter_of_another_layer_forbids_the_cuts_between(
    owner: int, user: int, owner_uses_it: bool
) -> None:
    def share(layer: int, weight: jax.Array, x: jax.Array, left: dict[str, Any]) -> jax.Array:
        if layer == user:
            return x + left["weights"][owner + 1]
        return x + weight if layer != owner or owner_uses_it else x * 2

    boundaries = toy(share)
    assert illegal(boundaries) == [2, 3]
    (crossing,) = set(boundaries[2].live) - set(boundaries[2].marked)
    assert crossing.origin == Input(f"w{owner + 1}", owner + 1)


def test_what_follows_from_the_steps_inputs_may_be_shared() -> None:
    def table(layer: int, weight: jax.Array, x: jax.Array, left: dict[str, Any]) -> jax.Array:
        if layer == 0:
            left["table"] = jnp.cos(left["positions"]) * jnp.arange(4)
        return x * left["table"] + weight * left["positions"]

    assert illegal(toy(table)) == []


def test_a_mutable_reference_that_layers_share_forbids_cuts() -> None:
    def through_reference(
        layer: int, weight: jax.Array, x: jax.Array, left: dict[str, Any]
    ) -> jax.Array:
        if layer == 1:
            left["reference"] = jax.new_ref(jnp.zeros(4))
            left["reference"][...] = x
        return x + left["reference"][...] if layer == 3 else x + weight

    assert illegal(toy(through_reference)) == [2, 3]


def in_jit(use: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jax.jit(use)(x)


def in_scan(use: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, _: (use(x), None), x, None, length=2)[0]


def in_cond(use: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jax.lax.cond(x[0] > 0, lambda: use(x), lambda: x)


def in_custom_jvp(use: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    used = jax.custom_jvp(use)
    used.defjvp(lambda at, slope: (use(*at), *slope))
    return used(x)


@pytest.mark.parametrize("nested", [in_jit, in_scan, in_cond, in_custom_jvp])
def test_a_nested_function_does_not_hide_what_it_closes_over(
    nested: Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array],
) -> None:
    def closure(layer: int, weight: jax.Array, x: jax.Array, left: dict[str, Any]) -> jax.Array:
        if layer == 1:
            left["early"] = x * 3
        return nested(lambda x: x + left["early"], x) if layer == 3 else x + weight

    assert illegal(toy(closure)) == [2, 3]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_may_be_cut_before_every_layer(family: str, dtype: jnp.dtype) -> None:
    model = Model(dataclasses.replace(CONFIG_OF_FAMILY[family], family=family))
    boundaries = live_across(*trace_layers(model, dtype))
    assert list(boundaries) == list(range(7))
    assert illegal(boundaries) == []
    assert illegal_cuts(model, dtype) == {}
    check_cuts(model, dtype)


def test_only_shapes_are_needed() -> None:
    # Its weights would take 2 TB.
    huge = dataclasses.replace(BASE, hidden_size=2**17, mlp_width=2**18, vocab_size=2**20)
    assert illegal_cuts(Model(huge), jnp.bfloat16) == {}


@pytest.fixture
def leaky_family(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces llama's blocks by some that read, in one layer, what another one had."""

    def replace(
        reader: int, source: int, what: Callable[[nnx.Module, jax.Array], jax.Array]
    ) -> None:
        had: list[jax.Array] = []

        class LeakyBlock(LlamaBlock):
            def __call__(
                self, x: jax.Array, kv_pages: jax.Array, at: BlockInputs
            ) -> tuple[jax.Array, jax.Array]:
                layer = len(had) % BASE.num_layers
                had.append(what(self, x))
                y, kv_pages = super().__call__(x, kv_pages, at)
                return (y + had[-1 - layer + source] if layer == reader else y), kv_pages

        leaky = dataclasses.replace(LLAMA, block=LeakyBlock)
        monkeypatch.setitem(FAMILIES, "llama", leaky)

    return replace


def test_a_block_that_reads_an_earlier_layer_is_refused(leaky_family: Callable[..., None]) -> None:
    leaky_family(reader=2, source=1, what=lambda block, x: jnp.tanh(x))
    model = Model(BASE, granule_layers=2)
    assert list(illegal_cuts(model, jnp.float32)) == [2]
    with pytest.raises(ModelError) as error:
        check_cuts(model, jnp.float32)
    message = str(error.value)
    assert "in granules of 2 layers cannot be cut before layer 2" in message
    assert "beside the residual stream, 1 value would cross" in message
    assert "float32[8,64], made in layer 1 by tanh" in message
    assert "test_cuts.py" in message
    assert "used in layer 2" in message
    assert message.endswith("give granules of 3 layers (granule_layers=3)")
    check_cuts(Model(BASE, granule_layers=3), jnp.float32)


def test_a_block_that_uses_another_layers_parameter_is_refused(
    leaky_family: Callable[..., None],
) -> None:
    leaky_family(reader=4, source=2, what=lambda block, x: block.attn_norm.weight[...])
    model = Model(BASE, granule_layers=1)
    reasons = illegal_cuts(model, jnp.float32)
    assert list(reasons) == [3, 4]
    assert "the attn_norm of layer 2, used in layer 2 and layer 4" in reasons[3]
    with pytest.raises(ModelError, match=r"give granules of 5 layers \(granule_layers=5\)"):
        check_cuts(model, jnp.float32)


def test_a_residual_stream_of_another_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class RoundingBlock(LlamaBlock):
        def __call__(
            self, x: jax.Array, kv_pages: jax.Array, at: BlockInputs
        ) -> tuple[jax.Array, jax.Array]:
            y, kv_pages = super().__call__(x, kv_pages, at)
            return y.astype(jnp.bfloat16), kv_pages

    monkeypatch.setitem(FAMILIES, "llama", dataclasses.replace(LLAMA, block=RoundingBlock))
    reasons = illegal_cuts(Model(BASE), jnp.float32)
    assert list(reasons) == [1, 2, 3, 4, 5, 6]
    assert "the residual stream is bfloat16[8,64], not float32[8,64]" in reasons[1]
    with pytest.raises(ModelError, match=r"before .* no granules avoid this"):
        check_cuts(Model(BASE), jnp.float32)
