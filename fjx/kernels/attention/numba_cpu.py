"""Ragged paged attention for CPUs, compiled by Numba and called by XLA in place.

XLA on a CPU copies the pages of every request before it multiplies them; here each page is read
once, where it lies, and work follows the tokens that are there. A row's result depends on nothing
but its own request: pages are taken in order, sixteen slots at a time, with an online softmax.
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Array, Float, Int32
from numba import types
from numba.extending import overload

from fjx.kernels.ragged import RaggedRows
from fjx.kernels.xla_ffi import argument, dims, only_asks_version, register, result, unowned

LANES = 16
"""Slots scored at once; page sizes must be a multiple."""

_TILE = 16  # query rows that share one pass over the pages
_MASKED = np.float32(-1e30)
_FAST = {"reassoc", "contract", "nsz", "arcp"}
_SHARDS = min(8, os.cpu_count() or 1)


def append_and_attend(
    q: Float[Array, "T H D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
    kv_pages: Array,
    layer: int | Int32[Array, ""],
    rows: RaggedRows,
    *,
    scale: float,
    window: Int32[Array, ""] | None,
    soft_cap: float | None,
) -> tuple[Float[Array, "T H D"], Array]:
    """See `fjx.kernels.attention.api.append_and_attend`."""
    layer = jnp.asarray(layer, jnp.int32)
    suffix = "bf16" if kv_pages.dtype == jnp.uint16 else "f32"
    _register(suffix)
    kv_pages = jax.ffi.ffi_call(
        f"fjx_append_kv_{suffix}",
        jax.ShapeDtypeStruct(kv_pages.shape, kv_pages.dtype),
        input_output_aliases={0: 0},
    )(kv_pages, k, v, layer, rows.positions, rows.request_of, rows.page_table)
    window = jnp.asarray(0 if window is None else window, jnp.int32)
    numbers = jnp.array([scale, soft_cap or 0.0], jnp.float32)
    attend = jax.ffi.ffi_call(f"fjx_attend_{suffix}", jax.ShapeDtypeStruct(q.shape, jnp.float32))
    # XLA may run calls that do not depend on each other on different threads; each leaves zeros
    # where it has no part.
    shards = [
        attend(
            q,
            kv_pages,
            layer,
            rows.query_start,
            rows.context_len,
            rows.page_table,
            window,
            numbers,
            jnp.array([shard, _SHARDS], jnp.int32),
        )
        for shard in range(_SHARDS)
    ]
    return sum(shards[1:], shards[0]), kv_pages


def _register(suffix: str) -> None:
    """Compile the kernels of one storage type, or load them from Numba's cache, once."""
    if suffix not in _REGISTERED:
        append, attend = (
            (_append_bf16, _attend_bf16) if suffix == "bf16" else (_append_f32, _attend_f32)
        )
        register(f"fjx_append_kv_{suffix}", append)
        register(f"fjx_attend_{suffix}", attend)
        _REGISTERED.add(suffix)


_REGISTERED: set[str] = set()


# In Numba, indexing an array by anything but a range's own variable checks for negative indices,
# which keeps loops from using vector instructions: so inner loops run over slices, and are written
# out where they are used.


def _store(target, bits):
    """Keep float32 bits, or their upper half, rounded to nearest even, where ``target`` is
    uint16."""
    raise NotImplementedError


@overload(_store, inline="always")
def _store_as(target, bits):
    def store_bf16(target, bits):
        for x in range(len(target)):
            b = bits[x]
            odd = (b >> np.uint32(16)) & np.uint32(1)
            target[x] = (b + np.uint32(0x7FFF) + odd) >> np.uint32(16)

    def store_f32(target, bits):
        for x in range(len(target)):
            target[x] = bits[x]

    return store_bf16 if target.dtype == types.uint16 else store_f32


def _widen(bits, stored):
    """Float32 bits of stored values; the opposite of `_store`."""
    raise NotImplementedError


@overload(_widen, inline="always")
def _widen_from(bits, stored):
    def widen_bf16(bits, stored):
        for x in range(len(stored)):
            bits[x] = np.uint32(stored[x]) << np.uint32(16)

    def widen_f32(bits, stored):
        for x in range(len(stored)):
            bits[x] = stored[x]

    return widen_bf16 if stored.dtype == types.uint16 else widen_f32


@numba.njit(inline="always")
def _append_frame(frame, stored):
    shape, table = dims(frame, 0), dims(frame, 6)
    pages, heads, page_size, D = shape[1], shape[3], shape[4], shape[5]
    out = result(frame, 0, stored)
    first_page = argument(frame, 3, np.int32)[0] * pages
    positions = argument(frame, 4, np.int32)
    request_of = argument(frame, 5, np.int32)
    page_table = argument(frame, 6, np.int32).reshape((table[0], table[1]))
    for which in range(2):
        new = argument(frame, 1 + which, np.uint32)
        for t in range(len(positions)):
            if request_of[t] < 0:
                continue
            page = first_page + page_table[request_of[t], positions[t] // page_size]
            for head in range(heads):
                row = ((page * 2 + which) * heads + head) * page_size + positions[t] % page_size
                source = (t * heads + head) * D
                _store(out[row * D : (row + 1) * D], new[source : source + D])


def _append_bf16(frame: int) -> int:
    if not only_asks_version(frame):
        _append_frame(frame, np.uint16)
    return 0


def _append_f32(frame: int) -> int:
    if not only_asks_version(frame):
        _append_frame(frame, np.uint32)
    return 0


@numba.njit(fastmath=_FAST, cache=True)
def _exp_below_zero(x, fraction, bits, power):
    """Replace values x <= 0 by exp(x), to 2 units in the last place, 0 below exp(-87).

    ``power`` views ``bits``.
    """
    for j in range(len(x)):
        y = max(x[j], np.float32(-87.0)) * np.float32(1.4426950408889634)
        whole = np.float32(np.floor(y + np.float32(0.5)))
        bits[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        z = (y - whole) * np.float32(0.6931471805599453)
        p = np.float32(1.9875691500e-4)
        p = p * z + np.float32(1.3981999507e-3)
        p = p * z + np.float32(8.3334519073e-3)
        p = p * z + np.float32(4.1665795894e-2)
        p = p * z + np.float32(1.6666665459e-1)
        p = p * z + np.float32(0.5)
        fraction[j] = p * z * z + z + np.float32(1.0)
    for j in range(len(x)):
        x[j] = fraction[j] * power[j] if x[j] > np.float32(-87.0) else np.float32(0.0)


@numba.njit(fastmath=_FAST, cache=True, error_model="numpy")
def _attend_tile(q, pages, out, table, layout, tile, scale, window, soft_cap):
    """Some rows of one request: each page is read once, from its beginning to its end.

    q, out [T, H, D]; pages: one granule's, flat; layout: (first page of the layer, K, page_size);
    tile: (first row, rows, position of the first row).
    """
    first_page, kv_heads, page_size = layout
    first, count, position = tile
    heads, D = q.shape[1], q.shape[2]
    group, M, block = heads // kv_heads, count * heads, LANES * D
    owner = np.zeros(2 * kv_heads * block + 3 * M * LANES + 2 * M * D + 2 * M, np.float32)
    scratch = unowned(owner)
    wide, scratch = scratch[: 2 * kv_heads * block], scratch[2 * kv_heads * block :]
    wide_bits = wide.view(np.uint32)
    scores, scratch = scratch[: M * LANES], scratch[M * LANES :]
    fraction, scratch = scratch[: M * LANES], scratch[M * LANES :]
    power, scratch = scratch[: M * LANES], scratch[M * LANES :]
    bits = power.view(np.int32)
    queries, scratch = scratch[: M * D], scratch[M * D :]
    sums, scratch = scratch[: M * D], scratch[M * D :]
    top, total = scratch[:M], scratch[M:]
    top[:] = _MASKED
    given = q[first : first + count].reshape(M * D)
    for x in range(M * D):
        queries[x] = given[x] * scale
    end = position + count
    begin = max(0, position - window + 1) // LANES * LANES if window > 0 else 0
    for base in range(begin, end, LANES):
        page = (first_page + table[base // page_size]) * 2 * kv_heads
        used = min(LANES, end - base) * D
        for part in range(2 * kv_heads):
            at = ((page + part) * page_size + base % page_size) * D
            _widen(wide_bits[part * block : part * block + used], pages[at : at + used])
        for m in range(M):
            part = m % heads // group
            query, score = queries[m * D : (m + 1) * D], scores[m * LANES : (m + 1) * LANES]
            keys = wide[part * block : (part + 1) * block]
            for j in range(LANES):
                key = keys[j * D : (j + 1) * D]
                s = np.float32(0.0)
                for x in range(D):
                    s += query[x] * key[x]
                score[j] = s
            if soft_cap > 0:
                for j in range(LANES):
                    score[j] = soft_cap * np.float32(np.tanh(score[j] / soft_cap))
            at = position + m // heads
            skip = max(0, at - window + 1 - base) if window > 0 else 0
            for j in range(min(skip, LANES)):
                score[j] = _MASKED
            for j in range(max(0, at + 1 - base), LANES):
                score[j] = _MASKED
            best = top[m]
            for j in range(LANES):
                best = max(best, score[j])
            for j in range(LANES):
                score[j] -= best
            if best > top[m]:
                shrink = np.float32(np.exp(top[m] - best))
                top[m] = best
                total[m] *= shrink
                acc = sums[m * D : (m + 1) * D]
                for x in range(D):
                    acc[x] *= shrink
        _exp_below_zero(scores, fraction, bits, power)
        for m in range(M):
            part = kv_heads + m % heads // group
            acc, score = sums[m * D : (m + 1) * D], scores[m * LANES : (m + 1) * LANES]
            values = wide[part * block : (part + 1) * block]
            weights = np.float32(0.0)
            for j in range(LANES):
                weights += score[j]
            total[m] += weights
            for j in range(0, LANES, 4):  # four at once: the sums stay in registers longer
                w0, w1, w2, w3 = score[j], score[j + 1], score[j + 2], score[j + 3]
                v0, v1 = values[j * D : (j + 1) * D], values[(j + 1) * D : (j + 2) * D]
                v2, v3 = values[(j + 2) * D : (j + 3) * D], values[(j + 3) * D : (j + 4) * D]
                for x in range(D):
                    acc[x] += (w0 * v0[x] + w1 * v1[x]) + (w2 * v2[x] + w3 * v3[x])
    for m in range(M):
        done, acc = out[first + m // heads, m % heads], sums[m * D : (m + 1) * D]
        for x in range(D):
            done[x] = acc[x] / total[m]
    owner[0] = 0.0  # it must live until here


@numba.njit(cache=True)
def _share_of(query_start, context_len, shard, shards):
    """Where a shard's work begins and ends, in rows times context."""
    work = 0
    for r in range(len(context_len)):
        work += (query_start[r + 1] - query_start[r]) * context_len[r]
    return work * shard // shards, work * (shard + 1) // shards


@numba.njit(inline="always")
def _attend_frame(frame, stored):
    row, shape, table = dims(frame, 0), dims(frame, 1), dims(frame, 5)
    q = argument(frame, 0, np.float32).reshape((row[0], row[1], row[2]))
    out = result(frame, 0, np.float32).reshape((row[0], row[1], row[2]))
    pages = argument(frame, 1, stored)
    layout = (argument(frame, 2, np.int32)[0] * shape[1], shape[3], shape[4])
    query_start, context_len = argument(frame, 3, np.int32), argument(frame, 4, np.int32)
    page_table = argument(frame, 5, np.int32).reshape((table[0], table[1]))
    window, numbers = argument(frame, 6, np.int32)[0], argument(frame, 7, np.float32)
    shard = argument(frame, 8, np.int32)
    begin, end = _share_of(query_start, context_len, shard[0], shard[1])
    out[:] = np.float32(0.0)
    done = 0  # each tile belongs to the shard in whose share its work begins
    for r in range(len(context_len)):
        last = query_start[r + 1]
        for first in range(query_start[r], last, _TILE):
            count = min(_TILE, last - first)
            position = context_len[r] - (last - first)
            if begin <= done < end:
                tile = (first, count, position)
                _attend_tile(
                    q, pages, out, page_table[r], layout, tile, numbers[0], window, numbers[1]
                )
            done += count * context_len[r]


def _attend_bf16(frame: int) -> int:
    if not only_asks_version(frame):
        _attend_frame(frame, np.uint16)
    return 0


def _attend_f32(frame: int) -> int:
    if not only_asks_version(frame):
        _attend_frame(frame, np.uint32)
    return 0
