"""The attention kernel on a GPU: right, and the same bits whatever is in the batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.kernels.attention import mosaic as attention
from tests.unit.kernels.test_attention import Step, Work
from tests.unit.kernels.test_attention_mosaic import SHAPES, attend, pages_of

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="needs a Hopper GPU, on which nothing is interpreted"
)

WORKS: list[Work] = [[(1, 60)], [(5, 55), (1, 0), (30, 20)], [(1, 3), (3, 40), (2, 58), (9, 1)]]


def run(
    step: Step, blocks: int = 3, q: Any = None, k: Any = None, rotation: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """With the step's own queries and keys, or those that become them by a rotation."""
    q, k = step.q if q is None else q, step.k if k is None else k
    out, after = attend(step.shape, blocks)(
        q, k, step.v, kv_pages=pages_of(step), rows=step.rows, rotation=rotation
    )
    return np.asarray(out), np.asarray(jax.lax.bitcast_convert_type(after, jnp.uint16))


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_numbers_are_right_and_nothing_else_is_touched(name: str, work: Work) -> None:
    step = Step(SHAPES[name], work, 3)
    out, pages = run(step)
    np.testing.assert_allclose(out, step.expected(), atol=2e-2, rtol=2e-2)
    np.testing.assert_array_equal(pages, step.expected_pages(), "pages")


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_rotated_is_what_is_attended_to(name: str) -> None:
    step = Step(SHAPES[name], [(5, 55), (1, 7), (9, 0)], seed=3)
    out, _ = run(step, 3, *step.before_rotation(4))
    np.testing.assert_allclose(out, step.expected(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", SHAPES)
def test_bits_depend_neither_on_blocks_nor_on_the_size_of_the_step(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step(SHAPES[name], [(5, 55), (1, 50), (30, 3)], seed=2)
    apart, _ = run(step)
    np.testing.assert_array_equal(run(step, blocks=7)[0], apart)
    monkeypatch.setattr(attention, "_FEW_ROWS", 0)
    np.testing.assert_array_equal(run(step)[0], apart)


@pytest.mark.parametrize("name", SHAPES)
def test_bits_do_not_depend_on_other_requests(name: str) -> None:
    together = Step(SHAPES[name], [(7, 50), (3, 20)], seed=4)
    both, _ = run(together)
    alone = Step(SHAPES[name], [(7, 50)], seed=4)
    alone.pages = together.pages
    for own, source in ((alone.q, together.q), (alone.k, together.k), (alone.v, together.v)):
        own[:] = np.nan
        own[:7] = source[:7]
    alone.rows.page_table[0] = together.rows.page_table[0]
    np.testing.assert_array_equal(run(alone)[0][:7], both[:7])
