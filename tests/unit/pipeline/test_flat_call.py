"""Programs called with the flat list of their arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.pipeline import flat_call as module
from fjx.pipeline.flat_call import flat_call

FOUR = jax.ShapeDtypeStruct((4,), jnp.float32)


def compiled(function: Any, *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
    return jax.jit(function, donate_argnums=donate).lower(*arguments).compile()


def arrays(count: int) -> list[jax.Array]:
    return [jnp.arange(4, dtype=jnp.float32) + i for i in range(count)]


def combine(params: Any, x: Any) -> Any:
    return params["b"] - x, {"sum": params["a"][0] + params["a"][1] * x}


def unused(params: Any, x: Any) -> Any:
    return params["b"] * 2


@pytest.mark.parametrize("function", [combine, unused])
def test_a_flat_call_gives_what_the_program_gives(function: Any) -> None:
    params = {"b": FOUR, "a": (FOUR, FOUR)}
    program = compiled(function, params, FOUR)
    a0, a1, b, x = given = arrays(4)
    expected = jax.tree.leaves(program({"b": b, "a": (a0, a1)}, x))
    results = flat_call(program)(given)
    assert [np.asarray(r).tolist() for r in results] == [np.asarray(e).tolist() for e in expected]


def test_donated_arrays_are_gone() -> None:
    x, y = arrays(2)
    call = flat_call(compiled(lambda x, y: x + y, FOUR, FOUR, donate=(0,)))
    (total,) = call([x, y])
    assert np.asarray(total).tolist() == [1, 3, 5, 7]
    assert x.is_deleted()
    assert not y.is_deleted()


def test_it_is_an_ordinary_call_where_jax_is_not_as_expected() -> None:
    class Other:
        """A program without the internals."""

        def __init__(self, program: Any) -> None:
            self.in_tree = program.in_tree
            self.program = program

        def __call__(self, *arguments: Any) -> Any:
            return self.program(*arguments)

    other = Other(compiled(lambda x, y: (x - y, y), FOUR, FOUR))
    assert module._direct(other) is None
    first, second = flat_call(other)(arrays(2))
    assert np.asarray(first).tolist() == [-1] * 4
    assert np.asarray(second).tolist() == [1, 2, 3, 4]


def test_this_jax_needs_no_ordinary_call() -> None:
    assert module._direct(compiled(combine, {"b": FOUR, "a": (FOUR, FOUR)}, FOUR)) is not None
