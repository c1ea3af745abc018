"""Pages moved by a GPU's memory engine: bit by bit, and nothing else changes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.kernels.kv_pages import put_pages, take_pages
from tests.unit.kernels.test_kv_pages_mosaic import bits, memory

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="needs a Hopper GPU, on which nothing is interpreted"
)


@pytest.mark.parametrize("pages", [[4], [6, 0, 3], [5, 2, 2, 2]])
@pytest.mark.parametrize("shape", [(1, 8, 64), (3, 16, 64), (8, 16, 128), (2, 32, 256)])
def test_pages_arrive_where_they_were_and_nothing_else_changes(
    shape: tuple[int, int, int], pages: list[int]
) -> None:
    source, target = memory(shape, jnp.bfloat16, 0), memory(shape, jnp.bfloat16, 1)
    expected = np.array(target)
    expected[:, pages] = np.asarray(source)[:, pages]
    ids = jnp.array(pages, jnp.int32)
    taken = jax.jit(partial(take_pages, implementation="mosaic"))(source, ids)
    put = jax.jit(partial(put_pages, implementation="mosaic"), donate_argnums=0)
    np.testing.assert_array_equal(bits(taken), bits(np.asarray(source)[:, pages]))
    np.testing.assert_array_equal(bits(put(target, ids, taken)), bits(expected))
