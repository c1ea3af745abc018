"""Pages taken from one KV memory and put into another."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.kernels.kv_pages import put_pages, take_pages

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
