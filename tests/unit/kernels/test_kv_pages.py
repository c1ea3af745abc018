"""Pages taken from one KV memory and put into another."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.kernels.kv_pages import new_pages, put_pages, take_pages
from tests.unit.resident import on_linux, resident

SHAPE = (3, 7, 2, 2, 16, 8)


def memory(dtype: str, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, 60000, SHAPE)
    return drawn.astype(dtype)


@pytest.mark.parametrize("implementation", ["reference", "numba"])
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("pages", [[4], [6, 0, 3], list(range(7))])
def test_pages_arrive_where_they_were_and_nothing_else_changes(
    dtype: str, pages: list[int], implementation: Any
) -> None:
    source, target = memory(dtype, 0), memory(dtype, 1)
    ids = jnp.array(pages, jnp.int32)
    take = jax.jit(partial(take_pages, implementation=implementation))
    taken = take(source, ids)
    assert (np.asarray(taken) == source[:, pages]).all()
    put_in_place = jax.jit(partial(put_pages, implementation=implementation), donate_argnums=0)
    put = put_in_place(jnp.array(target), ids, taken)
    expected = target.copy()
    expected[:, pages] = source[:, pages]
    assert (np.asarray(put) == expected).all()


def test_putting_pages_does_not_copy_the_memory() -> None:
    before = jnp.zeros(SHAPE)
    address = before.unsafe_buffer_pointer()
    contents = jnp.ones((3, 1, *SHAPE[2:]))
    after = jax.jit(put_pages, donate_argnums=0)(before, jnp.array([2], jnp.int32), contents)
    assert after.unsafe_buffer_pointer() == address
    assert float(after.sum()) == contents.size


def new_memory(shape: tuple[int, ...]) -> Any:
    return jax.jit(partial(new_pages, shape, jnp.bfloat16))


@pytest.mark.parametrize("shape", [(1, 1, 2, 1, 1, 3), SHAPE, (2, 301, 2, 1, 16, 64)])
def test_new_pages_are_zeros_whatever_was_in_that_memory_before(shape: tuple[int, ...]) -> None:
    make = new_memory(shape)
    for _ in range(8):
        used = jax.block_until_ready([jnp.full(shape, jnp.nan, jnp.bfloat16) for _ in range(4)])
        del used
        assert not np.asarray(make()).astype(np.float32).any()


@on_linux
def test_pages_take_memory_when_they_are_first_used() -> None:
    shape = (4, 16384, 2, 2, 16, 16)  # 128 MiB
    make = new_memory(shape).lower().compile()
    put = jax.jit(put_pages, donate_argnums=0)
    contents = jnp.ones((4, 64, *shape[2:]), jnp.bfloat16)
    ids = jnp.arange(64, dtype=jnp.int32)
    warm = put(make(), ids, contents)
    jax.block_until_ready(warm)
    del warm
    before = resident()
    memory = jax.block_until_ready(make())
    assert resident() - before < memory.nbytes // 8
    memory = jax.block_until_ready(put(memory, ids, contents))
    assert resident() - before < memory.nbytes // 8
    assert (np.asarray(memory[:, :65]).astype(np.float32).sum(axis=(0, 2, 3, 4, 5)) > 0).sum() == 64
