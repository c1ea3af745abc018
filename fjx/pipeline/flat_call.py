"""Calling a compiled program of many arrays with little work for the host.

`jax.stages.Compiled` flattens its arguments and derives a signature from each array in every call.
For the 200 arrays of a small model that is nearly half of the time to dispatch a step. The runtime
does not need it, but JAX has no public way around it: its internals are used in this file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

FlatCall = Callable[[Sequence[Any]], list[Any]]


def flat_call(compiled: Any) -> FlatCall:
    """A program as a function from the flat list of its arguments' arrays to that of its results.

    The arrays must lie where the program expects them; only XLA looks at their sizes. Where JAX is
    not as expected, this is an ordinary call of ``compiled``.
    """
    return _direct(compiled) or _ordinary(compiled)


def _ordinary(compiled: Any) -> FlatCall:
    def call(arrays: Sequence[Any]) -> list[Any]:
        arguments, keywords = jax.tree.unflatten(compiled.in_tree, arrays)
        return jax.tree.leaves(compiled(*arguments, **keywords))

    return call


def _direct(compiled: Any) -> FlatCall | None:
    """What `Compiled` itself does once it has flattened and checked its arguments."""
    try:
        run = compiled._executable.unsafe_call
        special = run.ordered_effects or run.has_unordered_effects or run.has_host_callbacks
        dropped = len(run.kept_var_idx) != compiled.in_tree.num_leaves
        if special or run.mut or dropped or compiled._params.const_args:
            return None
        execute, handlers = run.xla_executable.execute_sharded, run.out_handler.handlers
    except AttributeError:
        return None

    def call(arrays: Sequence[Any]) -> list[Any]:
        results: list[Any] = execute(arrays).consume_with_handlers(handlers)
        return results

    return call
