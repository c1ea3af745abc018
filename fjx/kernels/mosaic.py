"""Pallas for Mosaic GPU: all that differs between JAX 0.10.2 and 0.12 is here.

Its interface is unstable. Kernels use it by this module's `kernel` and `transposed`, and otherwise
only what all of these versions have.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mosaic_dialect
from jax.experimental.pallas import mosaic_gpu

plgpu: Any = mosaic_gpu
"""Untyped: much of it has no types, or is not declared as exported."""


def kernel(
    body: Callable[..., None],
    *,
    results: Any,
    scratch: Any,
    grid: tuple[int, ...],
    grid_names: tuple[str, ...],
    warpgroups: int,
    name: str,
) -> Callable[..., Any]:
    """A kernel of blocks of ``warpgroups`` warpgroups, whose index is that of the axis ``wg``.

    Args:
        body: takes the references of arguments, results and ``scratch``.
        results: a tree of `jax.ShapeDtypeStruct`.
        scratch: a list of shared memory and barriers.
        grid: blocks.
        grid_names: its axes.
        warpgroups: of each block.
        name: of the kernel.
    """

    def with_scratch(*refs: Any) -> None:
        pl.run_scoped(partial(body, *refs), *scratch, collective_axes="wg")

    # Not `plgpu.kernel`: before JAX 0.12 it takes no memory that it is to change.
    made: Callable[..., Any] = pl.kernel(
        with_scratch,
        out_type=results,
        mesh=plgpu.Mesh(grid=grid, grid_names=grid_names, num_threads=warpgroups, thread_name="wg"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=_INTERPRETED[-1],
        name=name,
    )
    return made


def struct(shape: tuple[int, ...], dtype: Any) -> Any:
    """A result's shape and type."""
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def transposed(ref: Any) -> Any:
    """A matrix in shared memory, the other way round."""
    if hasattr(ref, "transpose"):
        return ref.transpose((1, 0))
    return plgpu.transpose_ref(ref, (1, 0))


def load(ref: Any, layout: Any) -> Any:
    """What is in a reference, with a layout that it cannot be read in with whole cache lines."""
    where = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()
    return plgpu.load(ref, *where, layout=layout, optimized=False)


def left_of_product(values: Any, at: Any) -> Any:
    """The left side of a matrix product from registers; in an interpreter, which only takes it from
    shared memory, by way of ``at``."""
    if not is_interpreted():
        return values
    at[...] = values
    plgpu.commit_smem()
    return at


def store(ref: Any, values: Any) -> None:
    """Write values to a reference that they cannot be written to with whole cache lines."""
    if hasattr(plgpu, "store"):
        plgpu.store(ref, values, optimized=False)
    else:
        ref[...] = values


def tiled(*tiles: tuple[int, ...], warps: tuple[int, ...], lanes: tuple[int, ...]) -> Any:
    """A layout of arrays that are tiled by tiles of tiles, the last of which is a thread's vector.

    Args:
        tiles: the largest first.
        warps: dimensions after tiling, from the end and largest first, that a warpgroup's warps
            share; where these are fewer than four, warps have the same.
        lanes: likewise of a warp's threads.
    """
    tiling = plgpu.Tiling(tiles)
    sizes = tiling.tile_shape(tiles[0])

    def shared(dimensions: tuple[int, ...], threads: int) -> tuple[Any, ...]:
        times = threads // prod(sizes[i] for i in dimensions)
        return (plgpu.Replicated(times), *dimensions) if times > 1 else dimensions

    layout: Any = mosaic_dialect.TiledLayout(
        tiling, shared(warps, 4), shared(lanes, 32), -1, _check_canonical=False
    ).canonicalize()
    return plgpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)


_INTERPRETED: list[Any] = [False]


def is_interpreted() -> bool:
    """Whether what is traced now is to run in an interpreter."""
    return _INTERPRETED[-1] is not False


def can_interpret() -> bool:
    """Whether kernels can run on a CPU: the interpreters before JAX 0.12 lack too much."""
    return hasattr(plgpu, "InterpretGPUParams")


@contextlib.contextmanager
def interpreted(**options: Any) -> Iterator[None]:
    """Kernels that are traced meanwhile run on a CPU, for tests.

    Args:
        options: of ``plgpu.InterpretGPUParams``.
    """
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    _INTERPRETED.append(plgpu.InterpretGPUParams(**options))
    try:
        yield
    except BaseException:
        interpret_pallas_call.reset_gpu_interpret_mode_state()  # type: ignore[no-untyped-call]
        raise
    finally:
        _INTERPRETED.pop()


def lowers(function: Callable[..., Any], *arguments: Any) -> str:
    """The function's program for CUDA, without a GPU; raises what the compiler raises."""
    traced = jax.jit(function).trace(*arguments)
    text: str = traced.lower(lowering_platforms=("cuda",)).as_text()
    return text
