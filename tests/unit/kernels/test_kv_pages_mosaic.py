"""What moves a GPU's pages: in an interpreter, and that it compiles for CUDA."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.kernels import mosaic
from fjx.kernels.attention import kv_pages_shape
from fjx.kernels.kv_pages import put_pages, take_pages
from fjx.kernels.kv_pages.mosaic import fits
from fjx.kernels.kv_pages.mosaic import put_pages as put_mosaic
from fjx.kernels.kv_pages.mosaic import take_pages as take_mosaic
from scripts.gpu_checks.models import EIGHTH_OF_70B, HEADS
from tests.unit.kernels.gpu_cases import interpreted

LAYERS, PAGES = 2, 7

page_shapes = st.sampled_from(
    [
        (1, 8, 64),  # one piece
        (3, 16, 64),  # a piece that is no power of two
        (8, 16, 128),  # several pieces
        (2, 32, 256),
        (1, 16, 80),
    ]
)
"""KV heads, positions of a page, size of a head."""
ids = st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=PAGES, unique=True)


def memory(shape: tuple[int, int, int], dtype: Any, seed: int) -> jax.Array:
    """Any bits, those of NaN among them."""
    kv_heads, page_size, head_dim = shape
    full = kv_pages_shape(LAYERS, PAGES, page_size, kv_heads, head_dim)
    as_bits = np.uint16 if jnp.dtype(dtype).itemsize == 2 else np.uint32
    drawn = np.random.default_rng(seed).integers(0, np.iinfo(as_bits).max, full, as_bits)
    return jax.lax.bitcast_convert_type(drawn, dtype)


def bits(pages: Any) -> np.ndarray:
    return np.asarray(pages).view(np.uint8)


@interpreted
@settings(max_examples=8, derandomize=True)
@given(
    shape=page_shapes,
    dtype=st.sampled_from([jnp.bfloat16, jnp.float32]),
    pages=ids,
    blocks=st.sampled_from([1, 3, 132]),
)
def test_pages_arrive_where_they_were_and_nothing_else_changes(
    shape: tuple[int, int, int], dtype: Any, pages: list[int], blocks: int
) -> None:
    source, target = memory(shape, dtype, 0), memory(shape, dtype, 1)
    with mosaic.interpreted(detect_races=True):
        taken = take_mosaic(source, jnp.array(pages, jnp.int32), blocks)
        put = put_mosaic(target, jnp.array(pages, jnp.int32), taken, blocks)
    np.testing.assert_array_equal(bits(taken), bits(np.asarray(source)[:, pages]))
    expected = np.array(target)
    expected[:, pages] = np.asarray(source)[:, pages]
    np.testing.assert_array_equal(bits(put), bits(expected))


@interpreted
def test_ids_that_repeat_as_padding_does_are_harmless() -> None:
    """Their writes race, as the detector would say, and all leave the same bytes."""
    source, target = (memory((8, 16, 128), jnp.bfloat16, seed) for seed in (0, 1))
    padded = jnp.array([4, 2, 2, 2], jnp.int32)
    with mosaic.interpreted():
        put = put_mosaic(target, padded, take_mosaic(source, padded, 3), 3)
    expected = np.array(target)
    expected[:, [2, 4]] = np.asarray(source)[:, [2, 4]]
    np.testing.assert_array_equal(bits(put), bits(expected))


MODELS = HEADS | EIGHTH_OF_70B


@pytest.mark.parametrize("count", [1, 64])
@pytest.mark.parametrize("model", MODELS)
def test_they_compile_for_cuda_and_the_put_is_in_place(model: str, count: int) -> None:
    _, kv_heads, head_dim = MODELS[model]
    shape = kv_pages_shape(4, 1000, 16, kv_heads, head_dim)
    assert fits(shape, jnp.bfloat16)
    kv_pages = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    pages = jax.ShapeDtypeStruct((count,), jnp.int32)
    contents = jax.ShapeDtypeStruct((4, count, *shape[2:]), jnp.bfloat16)
    take = partial(take_pages, implementation="mosaic")
    put = partial(put_pages, implementation="mosaic")
    assert "mosaic_gpu" in mosaic.lowers(take, kv_pages, pages)
    text = mosaic.lowers(put, kv_pages, pages, contents)
    assert "mosaic_gpu" in text
    assert "output_operand_alias<output_tuple_indices = [], operand_index = 2" in text


def test_pages_that_do_not_fit_are_refused_with_a_way_out() -> None:
    shape = kv_pages_shape(1, 4, 1, 1, 24)
    assert not fits(shape, jnp.bfloat16)
    with pytest.raises(ValueError, match="use implementation='reference'"):
        take_mosaic(jnp.zeros(shape, jnp.bfloat16), jnp.zeros(1, jnp.int32))
