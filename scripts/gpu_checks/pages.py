"""KV pages: rows written to them, rotated, and pages moved; their bits, and their time beside XLA's
and that of a copy of as many bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fjx.kernels import mosaic
from fjx.kernels.attention import kv_pages_shape, reference
from fjx.kernels.attention.mosaic_append import append
from fjx.kernels.attention.rotation import rotate
from fjx.kernels.kv_pages import put_pages, take_pages
from fjx.kernels.ragged import RaggedRows

from .models import HEADS
from .timing import copy_bandwidth

LAYERS, PAGES, PAGE_SIZE = 4, 2048, 16
MOVED = 64
"""Pages of one program that moves them."""
REPEATS = 100
"""Calls in one program, so that the host's part does not count."""

Model = tuple[int, int, int]


def lowered() -> Iterator[tuple[str, Callable[[], object]]]:
    """What compiles for CUDA without a GPU."""
    for name, model in HEADS.items():
        for rows in (1, 64, 2048):
            given = jax.eval_shape(partial(written, model, rows))
            yield f"write, {name}, {rows} rows", partial(mosaic.lowers, by_mosaic, *given)
        kv_pages = given[3]
        ids = jax.ShapeDtypeStruct((MOVED,), jnp.int32)
        contents = jax.eval_shape(partial(take_pages, implementation="reference"), kv_pages, ids)
        take = partial(take_pages, implementation="mosaic")
        put = partial(put_pages, implementation="mosaic")
        yield f"take, {name}", partial(mosaic.lowers, take, kv_pages, ids)
        yield f"put, {name}", partial(mosaic.lowers, put, kv_pages, ids, contents)


def checks() -> dict[str, Callable[[], Any]]:
    """What a GPU is to say."""
    return {
        "written rows": rows_written,
        "moved pages": pages_moved,
        "writing": writing_times,
        "moving": moving_times,
    }


def written(model: Model, rows: int, seed: int = 0) -> tuple[Any, ...]:
    """Queries, keys, values, pages, the layer, rows of one request each, and their angles."""
    heads, kv_heads, head_dim = model
    keys = jax.random.split(jax.random.key(seed), 6)
    q, k, v = (
        jax.random.normal(key, (rows, n, head_dim))
        for key, n in zip(keys, (heads, kv_heads, kv_heads), strict=False)
    )
    shape = kv_pages_shape(LAYERS, PAGES, PAGE_SIZE, kv_heads, head_dim)
    angles = 1000 * jax.random.normal(keys[3], (rows, head_dim // 2))
    # Every row has a page of its own.
    table = jax.random.permutation(keys[4], PAGES)[:rows, None].astype(jnp.int32)
    positions = jax.random.randint(keys[5], (rows,), 0, PAGE_SIZE, jnp.int32)
    number = jnp.arange(rows + 1, dtype=jnp.int32)
    at = RaggedRows(positions, number[:-1], number, positions + 1, table)
    layer = jnp.int32(1)
    return q, k, v, jnp.ones(shape, jnp.bfloat16), layer, at, (jnp.cos(angles), jnp.sin(angles))


def by_mosaic(
    q: Any, k: Any, v: Any, kv_pages: Any, layer: Any, rows: RaggedRows, rotation: Any
) -> tuple[Any, Any]:
    """The kernel: queries (K, rows of all tokens, D), and pages."""
    group = _places(q, k)
    return append(q, k, v, kv_pages, layer, rows, rotation, group=group, slack=64 // group)


def by_xla(
    q: Any, k: Any, v: Any, kv_pages: Any, layer: Any, rows: RaggedRows, rotation: Any
) -> tuple[Any, Any]:
    """The same in jnp."""
    group, dtype = _places(q, k), kv_pages.dtype
    T, H, D = q.shape
    K = k.shape[1]
    kv_pages = reference.append(rotate(k, rotation), v, kv_pages, layer, rows, dtype)
    q = rotate(q, rotation).astype(dtype).reshape(T, K, H // K, D)
    q = jnp.pad(q, ((0, 64 // group), (0, 0), (0, group - H // K), (0, 0)))
    return jnp.moveaxis(q, 1, 0).reshape(K, -1, D), kv_pages


def _places(q: Any, k: Any) -> int:
    return 1 << (q.shape[1] // k.shape[1] - 1).bit_length()


def rows_written() -> dict[str, Any]:
    """The largest error of queries and keys against a rotation in float64, in parts of each number;
    whether values and all other slots are as they must be; and how many numbers are not XLA's."""
    found = {}
    for name, model in HEADS.items():
        given = written(model, 200)
        queries, pages = jax.device_get(jax.jit(by_mosaic)(*given))
        of_xla = jax.device_get(jax.jit(by_xla)(*given))
        q, k, v, before, layer, rows, (cos, sin) = jax.device_get(given)
        K, D = k.shape[1:]
        own = queries.reshape(K, -1, _places(q, k), D)[:, : len(q), : q.shape[1] // K]
        by_row = np.moveaxis(own, 1, 0).reshape(q.shape)
        at = int(layer), rows.page_table[:, 0], slice(None), slice(None), rows.positions
        after = pages[at]
        expected = np.array(before)
        expected[at] = after
        untouched = np.array_equal(pages.view(np.uint16), expected.view(np.uint16))
        values = np.array_equal(after[:, 1].view(np.uint16), _bits(v))
        found[name] = {
            "queries": _error(by_row, q, cos, sin),
            "keys": _error(after[:, 0], k, cos, sin),
            "values_equal": values,
            "others_untouched": untouched,
            "keys_that_are_not_xlas": int((after[:, 0] != of_xla[1][at][:, 0]).sum()),
        }
        largest = max(found[name]["queries"], found[name]["keys"])
        if not (values and untouched and largest <= 0.004):  # bfloat16 rounds by 2**-8 at most
            raise AssertionError(f"{name}: {found[name]}")
    return found


def _bits(values: np.ndarray) -> np.ndarray:
    return values.astype(jnp.bfloat16).view(np.uint16)


def _error(got: np.ndarray, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> float:
    """The largest, in parts of the number, or of a hundredth where it is smaller than that: what
    float32 loses where two products cancel is not bfloat16's rounding."""
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
    exact = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    error = np.abs(got.astype(np.float64) - exact) / np.maximum(np.abs(exact), 1e-2)
    return float(error.max())


def pages_moved() -> dict[str, Any]:
    """Whether each model's pages arrive bit by bit, and nothing else changes."""
    found = {}
    for name, (_, kv_heads, head_dim) in HEADS.items():
        memory, ids = _memory(kv_heads, head_dim)
        other = jnp.roll(memory, 1, axis=1)
        taken, put = (
            jax.jit(partial(move, implementation="mosaic")) for move in (take_pages, put_pages)
        )
        contents = taken(memory, ids)
        after = put(other, ids, contents)
        found[name] = {
            "taken": bool((contents == memory[:, ids]).all()),
            "put": bool((after == other.at[:, ids].set(contents)).all()),
        }
        if not all(found[name].values()):
            raise AssertionError(f"{name}: {found[name]}")
    return found


def _memory(kv_heads: int, head_dim: int) -> tuple[Any, Any]:
    """A granule's pages, and ids of some that are spread over it."""
    shape = kv_pages_shape(LAYERS, PAGES, PAGE_SIZE, kv_heads, head_dim)
    keys = jax.random.split(jax.random.key(0), 2)
    ids = jax.random.permutation(keys[1], PAGES)[:MOVED].astype(jnp.int32)
    return jax.random.normal(keys[0], shape, jnp.bfloat16), ids


def writing_times() -> list[dict[str, Any]]:
    """Microseconds of a layer's write, and those in which a copy moves its bytes."""
    bandwidth = 1e12 * copy_bandwidth()["terabytes_per_second"]
    found = []
    for name in ("Llama 3.1 8B", "Qwen3 32B", "SmolLM2 135M"):
        heads, kv_heads, head_dim = HEADS[name]
        for rows in (1, 8, 64, 256, 2048):
            q, k, v, kv_pages, layer, at, rotation = written(HEADS[name], rows)
            row_bytes = (heads + 2 * kv_heads) * head_dim * (4 + 2) + head_dim * 4
            given = q, k, v, layer, at, rotation
            each = {
                "mosaic": partial(_append_in_turn, by_mosaic),
                "xla": partial(_append_in_turn, by_xla),
            }
            found.append(
                {"model": name, "rows": rows, "least": 1e6 * rows * row_bytes / bandwidth}
                | {
                    how: 1e6 * _seconds_in_place(run, jnp.array(kv_pages), given)
                    for how, run in each.items()
                }
            )
    return found


def _append_in_turn(write: Any, kv_pages: Any, *given: Any) -> tuple[Any, Any]:
    """Again and again; pages, and the last queries."""

    def again(i: Any, carry: Any) -> Any:
        # What does not depend on the turn would be computed once.
        (q, k, v, layer, rows, rotation), _ = lax.optimization_barrier((given, i))
        queries, kv_pages = write(q, k, v, carry[0], layer, rows, rotation)
        return kv_pages, queries

    q, k, v, layer, rows, rotation = given
    queries, kv_pages = write(q, k, v, kv_pages, layer, rows, rotation)
    return lax.fori_loop(1, REPEATS, again, (kv_pages, queries))


def moving_times() -> list[dict[str, Any]]:
    """Microseconds in which a granule's pages are taken, or put, and in which a copy of as many
    bytes is made."""
    bandwidth = 1e12 * copy_bandwidth()["terabytes_per_second"]
    found = []
    for name in ("Llama 3.1 8B", "SmolLM2 135M"):
        _, kv_heads, head_dim = HEADS[name]
        memory, ids = _memory(kv_heads, head_dim)
        contents = take_pages(memory, ids, implementation="reference")
        for what, turns in (("take", _take_in_turn), ("put", _put_in_turn)):
            row: dict[str, Any] = {"model": name, "what": what, "pages": MOVED, "layers": LAYERS}
            row["least"] = 1e6 * 2 * contents.nbytes / bandwidth
            for how in ("mosaic", "reference"):
                state = jnp.zeros_like(contents) if what == "take" else jnp.array(memory)
                given = (memory, ids) if what == "take" else (ids, contents)
                row[how] = 1e6 * _seconds_in_place(partial(turns, how), state, given)
            found.append(row)
    return found


def _take_in_turn(how: Any, contents: Any, memory: Any, ids: Any) -> tuple[Any]:
    def again(i: Any, _: Any) -> Any:
        now, _ = lax.optimization_barrier((ids, i))
        return take_pages(memory, now, implementation=how)

    return (lax.fori_loop(0, REPEATS, again, contents),)


def _put_in_turn(how: Any, memory: Any, ids: Any, contents: Any) -> tuple[Any]:
    def again(_: Any, memory: Any) -> Any:
        return put_pages(memory, ids, contents, implementation=how)

    return (lax.fori_loop(0, REPEATS, again, memory),)


def _seconds_in_place(run: Callable[..., Any], state: Any, given: tuple[Any, ...]) -> float:
    """Seconds of one of `REPEATS` calls that change ``state``: the median of five programs."""
    program = jax.jit(run, donate_argnums=0)
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        state, *_ = jax.block_until_ready(program(state, *given))
        times.append((time.perf_counter() - begun) / REPEATS)
    return statistics.median(times[1:])  # the first one was compiled
