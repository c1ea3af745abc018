"""Two computations in one program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fjx.pipeline.compiler import Compiler, ProgramSpec
from fjx.pipeline.overlap import STREAM_OPTIONS, overlap, overlapped
from fjx.pipeline.structs import floats


def scale(x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x * 2, state + jnp.sum(x)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.tanh(a @ b)


X = np.arange(4, dtype=np.float32)
A = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def test_both_give_what_they_give_alone() -> None:
    (x, state), c = jax.jit(overlap(scale, product))((X, jnp.float32(1)), (A, A.T))
    assert (x == X * 2).all()
    assert state == 7
    np.testing.assert_allclose(c, np.tanh(A @ A.T), rtol=1e-6)


def test_a_program_of_two_takes_and_donates_what_both_do() -> None:
    f = ProgramSpec("f", scale, (floats(4), floats()), donate=(1,))
    g = ProgramSpec("g", product, (floats(3, 4), floats(4, 3)), donate=(0,), options={"o": 1})
    both = overlapped(f, g, "both", "cpu")
    assert both.arguments == (*f.arguments, *g.arguments)
    assert both.donate == (1, 2)
    assert both.options == {"o": 1}
    assert overlapped(f, g, "both", "gpu").options == {"o": 1, **STREAM_OPTIONS}


def test_the_program_runs() -> None:
    compiler = Compiler(cache_dir=None)
    f = ProgramSpec("f", scale, (floats(4), floats()), donate=(1,))
    g = ProgramSpec("g", product, (floats(3, 4), floats(4, 3)))
    compiler.register([overlapped(f, g, "both", "cpu")])
    compiler.compile_all(progress=False)
    state = jnp.float32(1)
    (x, after), c = compiler.get("both")(jnp.asarray(X), state, jnp.asarray(A), jnp.asarray(A.T))
    assert state.is_deleted()
    assert after == 7
    assert (x == X * 2).all()
    assert c.shape == (3, 3)
