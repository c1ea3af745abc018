"""Two computations at once on one GPU.

Programs that are sent to a GPU one after the other run so; within a program XLA can put a part on a
stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.experimental import compute_on as _compute_on
from jax.extend.core import Literal

from fjx.pipeline.compiler import ProgramSpec

STREAM_OPTIONS = {"xla_gpu_experimental_stream_annotation": True}
"""XLA's compile options for a program that uses `overlap`, on a GPU."""


Call = Callable[..., Any]


def overlap(f: Call, g: Call) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A traceable function that runs ``f(*a)`` and ``g(*b)`` side by side, from the tuples a and b.

    On a GPU g is on a stream of its own. Elsewhere the annotation has no effect, and the compiler
    decides in which order they run. What they give does not depend on it.
    """
    # JAX 0.10 has the form for regions under another name.
    annotate: Any = getattr(_compute_on, "compute_on2", _compute_on.compute_on)
    beside = annotate(
        _without_calls(g), compute_type="gpu_stream:1", out_memory_spaces=jax.memory.Space.Device
    )

    def both(a: Any, b: Any) -> tuple[Any, Any]:
        other = beside(*b)
        return f(*a), other

    return both


def _without_calls(function: Call) -> Call:
    """The function without jitted functions within: XLA would put a call inside of the region on a
    stream by itself, and then does not compile."""

    def inlined(*arguments: Any) -> Any:
        traced = jax.make_jaxpr(function, return_shape=True)
        jaxpr, shapes = traced(*arguments)
        results = _evaluate(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return inlined


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        given = [value(atom) for atom in equation.invars]
        if equation.primitive.name in ("jit", "pjit"):
            inner = equation.params["jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, given)
        else:
            options = equation.primitive.get_bind_params(equation.params)
            bound = equation.primitive.bind(*given, **options)
            results = bound if equation.primitive.multiple_results else [bound]
        values.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def overlapped(f: ProgramSpec, g: ProgramSpec, key: Hashable, platform: str) -> ProgramSpec:
    """The program of both: it takes f's arguments and then g's, and returns both results."""
    count = len(f.arguments)
    run = overlap(f.function, g.function)

    def both(*arguments: Any) -> tuple[Any, Any]:
        return run(arguments[:count], arguments[count:])

    options = {**f.options, **g.options}
    if platform in ("gpu", "cuda"):
        options |= STREAM_OPTIONS
    donate = (*f.donate, *(count + position for position in g.donate))
    flat, arguments = f.flat and g.flat, (*f.arguments, *g.arguments)
    return ProgramSpec(key, both, arguments, donate, options, flat, background=True)
