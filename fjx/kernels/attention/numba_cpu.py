"""Ragged paged attention for CPUs, compiled by Numba and called by XLA in place.

XLA on a CPU copies the pages of every request before it multiplies them; here each page is read
where it lies, and work follows the tokens that are there. Threads share the work in parts: some
rows of one request with the query heads of one KV head.

A row's result depends on nothing but its own request: slots are scored `LANES` at a time, weighed
`_CHUNK` at a time with an online softmax (Milakov and Gimelshein 2018), and both begin at multiples
of their size.

In a page, the keys of each `LANES` slots lie transposed, (head_dim, `LANES`), so that one vector
holds a component of sixteen keys; values lie as `kv_pages_shape` says.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Array, Float, Int32
from numba import types
from numba.extending import overload

from fjx.kernels.attention.microkernels import add_block_values, block_scores, weigh
from fjx.kernels.attention.rotation import Rotation, rotate
from fjx.kernels.ragged import RaggedRows
from fjx.kernels.vectors import LANES, VECTORS
from fjx.kernels.xla_ffi import argument, dims, only_asks_version, register, result, view
from fjx.kernels.xla_threads import (
    block_arguments,
    claim,
    finish,
    free,
    invite,
    malloc,
    new_block,
    register_task,
    release,
    symbol_address,
    wait,
)

_TILE = 16  # query rows that share one pass over the pages
_CHUNK = 16 * LANES  # slots whose scores are known before they are weighed
_MASKED = np.float32(-1e30)


def append_and_attend(
    q: Float[Array, "T H D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
    kv_pages: Array,
    layer: int | Int32[Array, ""],
    rows: RaggedRows,
    *,
    rotation: Rotation | None,
    scale: float,
    window: Int32[Array, ""] | None,
    soft_cap: float | None,
) -> tuple[Float[Array, "T H D"], Array]:
    """See `fjx.kernels.attention.api.append_and_attend`."""
    q, k = rotate(q, rotation), rotate(k, rotation)
    suffix = "bf16" if kv_pages.dtype == jnp.uint16 else "f32"
    task, kernel = (_bf16_task, _bf16_kernel) if suffix == "bf16" else (_f32_task, _f32_kernel)
    register_task(f"fjx_attention_{suffix}_task", task)
    register(f"fjx_attention_{suffix}", kernel)
    out, kv_pages = jax.ffi.ffi_call(
        f"fjx_attention_{suffix}",
        (
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            jax.ShapeDtypeStruct(kv_pages.shape, kv_pages.dtype),
        ),
        input_output_aliases={3: 1},
    )(
        q,
        k,
        v,
        kv_pages,
        jnp.asarray(layer, jnp.int32),
        jnp.asarray(0 if window is None else window, jnp.int32),
        jnp.array([scale, soft_cap or 0.0], jnp.float32),
        rows.positions,
        rows.request_of,
        rows.query_start,
        rows.context_len,
        rows.page_table,
    )
    return out, kv_pages


# In Numba, indexing an array by anything but a range's own variable checks for negative indices,
# which keeps loops from using vector instructions: so inner loops run over slices, and are written
# out where they are used.


def _stored(bits, like):
    """Float32 bits as they are kept in pages: all, or the upper half where ``like`` is uint16."""
    raise NotImplementedError


@overload(_stored, inline="always")
def _stored_as(bits, like):
    def half(bits, like):
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    def whole(bits, like):
        return bits

    return half if like.dtype == types.uint16 else whole


@numba.njit(inline="always")
def _append(frame, stored):
    shape, table = dims(frame, 3), dims(frame, 11)
    pages, heads, page_size, D = shape[1], shape[3], shape[4], shape[5]
    out = result(frame, 1, stored)
    first_page = argument(frame, 4, np.int32)[0] * pages
    positions = argument(frame, 7, np.int32)
    request_of = argument(frame, 8, np.int32)
    page_table = argument(frame, 11, np.int32).reshape((table[0], table[1]))
    k, v = argument(frame, 1, np.uint32), argument(frame, 2, np.uint32)
    for t in range(len(positions)):
        if request_of[t] < 0:
            continue
        page = first_page + page_table[request_of[t], positions[t] // page_size]
        slot = positions[t] % page_size
        for head in range(heads):
            source = (t * heads + head) * D
            part = (page * 2 * heads + head) * page_size * D
            at = part + slot // LANES * LANES * D + slot % LANES
            key, keys = k[source : source + D], out[at : part + page_size * D]
            for x in range(D):
                keys[x * LANES] = _stored(key[x], out)
            part += heads * page_size * D
            value, target = v[source : source + D], out[part + slot * D : part + (slot + 1) * D]
            for x in range(D):
                target[x] = _stored(value[x], out)


def _score_rows(bfloat16):
    """Scores as many rows as one call can, and gives how many: 6, 3, 2 and 1 cover every group
    size in few calls."""
    six, three, two, one = (block_scores(rows, bfloat16) for rows in (6, 3, 2, 1))

    @numba.njit(inline="always")
    def score(rows, q, keys, out, D, q_row, out_row):
        if rows >= 6:
            six(q, keys, out, D, q_row, out_row)
            return 6
        if rows >= 3:
            three(q, keys, out, D, q_row, out_row)
            return 3
        if rows == 2:
            two(q, keys, out, D, q_row, out_row)
            return 2
        one(q, keys, out, D, q_row, out_row)
        return 1

    return score


def _add_rows(bfloat16):
    """Adds the values for as many rows as one call can, and gives how many."""
    six, three, two, one = (add_block_values(rows, VECTORS, bfloat16) for rows in (6, 3, 2, 1))
    narrow = add_block_values(1, 1, bfloat16)

    @numba.njit(inline="always")
    def add(rows, wide, weights, values, sums, used, weights_row, values_row, sums_row):
        if not wide:
            narrow(weights, values, sums, used, weights_row, values_row, sums_row)
            return 1
        if rows >= 6:
            six(weights, values, sums, used, weights_row, values_row, sums_row)
            return 6
        if rows >= 3:
            three(weights, values, sums, used, weights_row, values_row, sums_row)
            return 3
        if rows == 2:
            two(weights, values, sums, used, weights_row, values_row, sums_row)
            return 2
        one(weights, values, sums, used, weights_row, values_row, sums_row)
        return 1

    return add


_score_bf16, _score_f32 = _score_rows(True), _score_rows(False)
_add_bf16, _add_f32 = _add_rows(True), _add_rows(False)
_WIDE = LANES * VECTORS

# A block's arguments: addresses of q, the layer's pages, the result, query_start, context_len, the
# page table and the numbers; then sizes.
_Q, _PAGES, _OUT, _STARTS, _CONTEXTS, _TABLE, _NUMBERS = range(7)
_REQUESTS, _TABLE_WIDTH, _HEADS, _KV_HEADS, _PAGE_SIZE, _D, _WINDOW = range(7, 14)
_ARGUMENTS = 14


@numba.njit(inline="always")
def _num_tiles(starts, requests):
    tiles = 0
    for r in range(requests):
        tiles += (starts[r + 1] - starts[r] + _TILE - 1) // _TILE
    return tiles


@numba.njit(inline="always")
def _tile(given, number):
    """Request, first row, rows and position of the first row of a numbered tile."""
    requests = given[_REQUESTS]
    starts = view(given[_STARTS], requests + 1, np.int32)
    contexts = view(given[_CONTEXTS], requests, np.int32)
    r = 0
    while True:
        rows = starts[r + 1] - starts[r]
        tiles = (rows + _TILE - 1) // _TILE
        if number < tiles:
            first = starts[r] + number * _TILE
            count = min(_TILE, starts[r + 1] - first)
            return r, first, count, contexts[r] - (starts[r + 1] - first)
        number -= tiles
        r += 1


@numba.njit(inline="always")
def _attend_part(given, part, scratch, item, score, add):
    """One tile with the query heads of one KV head.

    ``item``: bytes of a stored number; score and add: the inner loops for their type.
    """
    heads, kv_heads, page_size, D = given[_HEADS], given[_KV_HEADS], given[_PAGE_SIZE], given[_D]
    r, first, count, position = _tile(given, part // kv_heads)
    kv_head, group = part % kv_heads, heads // kv_heads
    table = view(given[_TABLE] + 4 * r * given[_TABLE_WIDTH], given[_TABLE_WIDTH], np.int32)
    numbers, window = view(given[_NUMBERS], 2, np.float32), given[_WINDOW]
    M, scores_row, row = count * group, 4 * _CHUNK, 4 * D
    queries, sums = scratch, scratch + M * row
    scores = sums + M * row
    tops, totals = scores + M * scores_row, scores + M * scores_row + 4 * M
    for m in range(M):
        at = ((first + m // group) * heads + kv_head * group + m % group) * row
        query, scaled = view(given[_Q] + at, D, np.float32), view(queries + m * row, D, np.float32)
        for x in range(D):
            scaled[x] = query[x] * numbers[0]
    view(sums, M * D, np.float32)[:] = np.float32(0.0)
    view(tops, M, np.float32)[:] = _MASKED
    view(totals, M, np.float32)[:] = np.float32(0.0)

    end = position + count
    begin = max(0, position - window + 1) // LANES * LANES if window > 0 else 0
    head_bytes = page_size * D * item
    while begin < end:
        stop = min(begin // _CHUNK * _CHUNK + _CHUNK, end)
        blocks = (stop - begin + LANES - 1) // LANES
        for b in range(blocks):
            at = begin + b * LANES
            page = given[_PAGES] + (table[at // page_size] * 2 * kv_heads + kv_head) * head_bytes
            keys, m = page + at % page_size * D * item, 0
            while m < M:
                out = scores + m * scores_row + 4 * LANES * b
                m += score(M - m, queries + m * row, keys, out, D, row, scores_row)
        for m in range(M):
            last = position + m // group
            line = view(scores + m * scores_row, blocks * LANES, np.float32)
            if numbers[1] > 0:
                for x in range(len(line)):
                    line[x] = numbers[1] * np.float32(np.tanh(line[x] / numbers[1]))
            for x in range(max(0, last + 1 - begin), len(line)):
                line[x] = _MASKED
            if window > 0:
                for x in range(min(max(0, last + 1 - window - begin), len(line))):
                    line[x] = _MASKED
            shrink = weigh(scores + m * scores_row, blocks, tops + 4 * m, totals + 4 * m)
            if shrink != np.float32(1.0):
                line = view(sums + m * row, D, np.float32)
                for x in range(D):
                    line[x] *= shrink
        for b in range(blocks):
            at = begin + b * LANES
            page = table[at // page_size] * 2 * kv_heads + kv_heads + kv_head
            values = given[_PAGES] + page * head_bytes + at % page_size * D * item
            used, x = min(LANES, end - at), 0
            while x < D:
                wide, m = D - x >= _WIDE, 0
                while m < M:
                    m += add(
                        M - m,
                        wide,
                        scores + m * scores_row + 4 * LANES * b,
                        values + x * item,
                        sums + m * row + 4 * x,
                        used,
                        scores_row,
                        D * item,
                        row,
                    )
                x += _WIDE if wide else LANES
        begin = stop
    total_of = view(totals, M, np.float32)
    for m in range(M):
        at = ((first + m // group) * heads + kv_head * group + m % group) * row
        done, line = view(given[_OUT] + at, D, np.float32), view(sums + m * row, D, np.float32)
        scale = np.float32(1.0) / total_of[m]
        for x in range(D):
            done[x] = line[x] * scale


@numba.njit(inline="always")
def _work(block, item, score, add):
    given = block_arguments(block, _ARGUMENTS)
    part = claim(block)
    if part < 0:
        return
    most = _TILE * (given[_HEADS] // given[_KV_HEADS])
    scratch = malloc(4 * most * (2 * given[_D] + _CHUNK + 2))
    while part >= 0:
        _attend_part(given, part, scratch, item, score, add)
        finish(block)
        part = claim(block)
    free(scratch)


@numba.njit(inline="always")
def _block_of(frame, item):
    row, shape, table = dims(frame, 0), dims(frame, 3), dims(frame, 11)
    starts = argument(frame, 9, np.int32)
    requests = len(starts) - 1
    block = new_block(_num_tiles(starts, requests) * shape[3], _ARGUMENTS)
    given = block_arguments(block, _ARGUMENTS)
    layer_bytes = shape[1] * 2 * shape[3] * shape[4] * shape[5] * item
    pages = result(frame, 1, np.uint8).ctypes.data
    given[_PAGES] = pages + argument(frame, 4, np.int32)[0] * layer_bytes
    given[_Q] = argument(frame, 0, np.uint8).ctypes.data
    given[_OUT] = result(frame, 0, np.uint8).ctypes.data
    given[_STARTS] = starts.ctypes.data
    given[_CONTEXTS] = argument(frame, 10, np.uint8).ctypes.data
    given[_TABLE] = argument(frame, 11, np.uint8).ctypes.data
    given[_NUMBERS] = argument(frame, 6, np.uint8).ctypes.data
    given[_REQUESTS], given[_TABLE_WIDTH], given[_HEADS] = requests, table[1], row[1]
    given[_KV_HEADS], given[_PAGE_SIZE], given[_D] = shape[3], shape[4], shape[5]
    given[_WINDOW] = argument(frame, 5, np.int32)[0]
    return block


@numba.njit(inline="always")
def _clear_padding(frame):
    """Rows after the last request's are nobody's part."""
    row = dims(frame, 0)
    starts = argument(frame, 9, np.int32)
    out = result(frame, 0, np.float32)
    for x in range(starts[len(starts) - 1] * row[1] * row[2], len(out)):
        out[x] = np.float32(0.0)


def _bf16_task(block: int) -> None:
    _work(block, 2, _score_bf16, _add_bf16)
    release(block)


def _f32_task(block: int) -> None:
    _work(block, 4, _score_f32, _add_f32)
    release(block)


_bf16_task_address = symbol_address("fjx_attention_bf16_task")
_f32_task_address = symbol_address("fjx_attention_f32_task")


def _bf16_kernel(frame: int) -> int:
    if not only_asks_version(frame):
        _append(frame, np.uint16)
        _clear_padding(frame)
        block = _block_of(frame, 2)
        invite(frame, _bf16_task_address(), block)
        _work(block, 2, _score_bf16, _add_bf16)
        wait(block)
    return 0


def _f32_kernel(frame: int) -> int:
    if not only_asks_version(frame):
        _append(frame, np.uint32)
        _clear_padding(frame)
        block = _block_of(frame, 4)
        invite(frame, _f32_task_address(), block)
        _work(block, 4, _score_f32, _add_f32)
        wait(block)
    return 0
