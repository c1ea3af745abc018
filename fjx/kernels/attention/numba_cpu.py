"""Ragged paged attention for CPUs, compiled by Numba and called by XLA in place.

XLA on a CPU copies the pages of every request before it multiplies them; here each page is read once, where it
lies, and work follows the tokens that are there. A row's result depends on nothing but its own request: pages are
taken in order, sixteen slots at a time, with an online softmax.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Array, Float, Int32

from fjx.kernels.ragged import RaggedRows
from fjx.kernels.xla_ffi import argument, dims, only_asks_version, register, result

LANES = 16
"""Slots scored at once; page sizes must be a multiple."""
MAX_HEAD_DIM = 256

_TILE = 16  # query rows that share one pass over the pages
_MASKED = np.float32(-1e30)
_FAST = {"reassoc", "contract", "nsz", "arcp"}
_SHARDS = 2


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
    register_kernels()
    layer = jnp.asarray(layer, jnp.int32)
    suffix = "bf16" if kv_pages.dtype == jnp.uint16 else "f32"
    kv_pages = jax.ffi.ffi_call(
        f"fjx_append_kv_{suffix}",
        jax.ShapeDtypeStruct(kv_pages.shape, kv_pages.dtype),
        input_output_aliases={0: 0},
    )(kv_pages, k, v, layer, rows.positions, rows.request_of, rows.page_table)
    window = jnp.asarray(0 if window is None else window, jnp.int32)
    numbers = jnp.array([scale, soft_cap or 0.0], jnp.float32)
    attend = jax.ffi.ffi_call(f"fjx_attend_{suffix}", jax.ShapeDtypeStruct(q.shape, jnp.float32))
    out = attend(
        q, kv_pages, layer, rows.query_start, rows.context_len, rows.page_table, window, numbers
    )
    return out, kv_pages


def register_kernels() -> None:
    """Compile the kernels (or load them from Numba's cache) and make them known to XLA, once."""
    if _REGISTERED:
        return
    register("fjx_append_kv_bf16", _append_bf16)
    register("fjx_append_kv_f32", _append_f32)
    register("fjx_attend_bf16", _attend_bf16)
    register("fjx_attend_f32", _attend_f32)
    _REGISTERED.append(True)


_REGISTERED: list[bool] = []


@numba.njit(cache=True)
def _append(pages, new, which, layer, positions, request_of, table, shift):  # type: ignore[no-untyped-def]
    """Store float32 bits ``new`` [T, K, D], rounded to nearest even where only the upper half is kept."""
    T, K, D = new.shape
    page_size = pages.shape[4]
    half, odd = np.uint32(0x7FFF), np.uint32(1)
    if shift == 0:
        half, odd = np.uint32(0), np.uint32(0)
    for t in range(T):
        if request_of[t] < 0:
            continue
        page = table[request_of[t], positions[t] // page_size]
        slot = positions[t] % page_size
        for head in range(K):
            for x in range(D):
                bits = new[t, head, x]
                bits += half + ((bits >> np.uint32(16)) & odd)
                pages[layer, page, which, head, slot, x] = bits >> shift


@numba.njit(inline="always")
def _append_frame(frame, stored, shift):  # type: ignore[no-untyped-def]
    shape, row, table = dims(frame, 0), dims(frame, 1), dims(frame, 6)
    pages = result(frame, 0, stored).reshape(
        (shape[0], shape[1], shape[2], shape[3], shape[4], shape[5])
    )
    layer = argument(frame, 3, np.int32)[0]
    positions = argument(frame, 4, np.int32)
    request_of = argument(frame, 5, np.int32)
    page_table = argument(frame, 6, np.int32).reshape((table[0], table[1]))
    for which in range(2):
        new = argument(frame, 1 + which, np.uint32).reshape((row[0], row[1], row[2]))
        _append(pages, new, which, layer, positions, request_of, page_table, shift)


def _append_bf16(frame: int) -> int:
    if not only_asks_version(frame):
        _append_frame(frame, np.uint16, np.uint32(16))
    return 0


def _append_f32(frame: int) -> int:
    if not only_asks_version(frame):
        _append_frame(frame, np.uint32, np.uint32(0))
    return 0


@numba.njit(inline="always")
def _widen(page, bits, slots, shift):  # type: ignore[no-untyped-def]
    """Copy the first ``slots`` rows of stored bits as float32 bits."""
    for j in range(slots):
        for x in range(page.shape[1]):
            bits[j, x] = np.uint32(page[j, x]) << shift


@numba.njit(fastmath=_FAST, cache=True)
def _exp_below_zero(x, fraction, bits, power):  # type: ignore[no-untyped-def]
    """Replace LANES values x <= 0 by exp(x), to 2 units in the last place; ``power`` views ``bits``."""
    for j in range(LANES):
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
    for j in range(LANES):
        x[j] = fraction[j] * power[j]


@numba.njit(fastmath=_FAST, cache=True, error_model="numpy")
def _attend_tile(q, pages, out, table, first, count, position, head, group, oldest, scale, soft_cap, shift):  # type: ignore[no-untyped-def]
    """Rows ``first : first + count`` of one request, all query heads of one KV head.

    q, out [T, H, D]; pages [pages, 2, K, page_size, D] of one layer; position of the first row; ``oldest`` is
    how far back a row sees (0: everything).
    """
    D, page_size = q.shape[2], pages.shape[3]
    M = count * group
    keys, values = np.empty((LANES, D), np.float32), np.empty((LANES, D), np.float32)
    key_bits, value_bits = keys.view(np.uint32), values.view(np.uint32)
    score, fraction = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    bits = np.empty(LANES, np.int32)
    power = bits.view(np.float32)
    query, acc = np.empty((M, D), np.float32), np.zeros((M, D), np.float32)
    top, total = np.full(M, _MASKED, np.float32), np.zeros(M, np.float32)
    for m in range(M):
        for x in range(D):
            query[m, x] = q[first + m // group, head * group + m % group, x] * scale
    last = position + count - 1
    begin = 0
    if oldest > 0:
        begin = max(0, position - oldest + 1) // LANES * LANES
    for base in range(begin, last + 1, LANES):
        page = table[base // page_size]
        slot = base % page_size
        slots = min(LANES, last + 1 - base)
        _widen(pages[page, 0, head, slot : slot + LANES], key_bits, slots, shift)
        _widen(pages[page, 1, head, slot : slot + LANES], value_bits, slots, shift)
        for m in range(M):
            at = position + m // group
            seen = min(slots, at + 1 - base)
            skip = 0
            if oldest > 0:
                skip = max(0, at - oldest + 1 - base)
            if seen <= skip:
                continue
            best = top[m]
            for j in range(LANES):
                score[j] = _MASKED
            for j in range(skip, seen):
                s = np.float32(0.0)
                for x in range(D):
                    s += query[m, x] * keys[j, x]
                if soft_cap > 0:
                    s = soft_cap * np.float32(np.tanh(s / soft_cap))
                score[j] = s
                best = max(best, s)
            shrink = np.float32(np.exp(top[m] - best))
            top[m] = best
            for j in range(LANES):
                score[j] -= best
            _exp_below_zero(score, fraction, bits, power)
            if shrink != 1:
                total[m] *= shrink
                for x in range(D):
                    acc[m, x] *= shrink
            for j in range(skip, seen):
                weight = score[j]
                total[m] += weight
                for x in range(D):
                    acc[m, x] += weight * values[j, x]
    for m in range(M):
        for x in range(D):
            out[first + m // group, head * group + m % group, x] = acc[m, x] / total[m]


@numba.njit(cache=True)
def _attend(q, pages, out, query_start, context_len, table, window, scale, soft_cap, shift):  # type: ignore[no-untyped-def]
    R, K = len(context_len), pages.shape[2]
    group = q.shape[1] // K
    used = query_start[R]
    out[used:] = np.float32(0.0)
    for r in range(R):
        start, end = query_start[r], query_start[r + 1]
        for first in range(start, end, _TILE):
            count = min(_TILE, end - first)
            position = context_len[r] - (end - first)
            for head in range(K):
                _attend_tile(
                    q, pages, out, table[r], first, count, position, head, group, window, scale, soft_cap, shift
                )


@numba.njit(inline="always")
def _attend_frame(frame, stored, shift):  # type: ignore[no-untyped-def]
    row, shape, table = dims(frame, 0), dims(frame, 1), dims(frame, 5)
    q = argument(frame, 0, np.float32).reshape((row[0], row[1], row[2]))
    out = result(frame, 0, np.float32).reshape((row[0], row[1], row[2]))
    layer = argument(frame, 2, np.int32)[0]
    pages = argument(frame, 1, stored).reshape(
        (shape[0], shape[1], shape[2], shape[3], shape[4], shape[5])
    )[layer]
    numbers = argument(frame, 7, np.float32)
    _attend(
        q,
        pages,
        out,
        argument(frame, 3, np.int32),
        argument(frame, 4, np.int32),
        argument(frame, 5, np.int32).reshape((table[0], table[1])),
        argument(frame, 6, np.int32)[0],
        numbers[0],
        numbers[1],
        shift,
    )


def _attend_bf16(frame: int) -> int:
    if not only_asks_version(frame):
        _attend_frame(frame, np.uint16, np.uint32(16))
    return 0


def _attend_f32(frame: int) -> int:
    if not only_asks_version(frame):
        _attend_frame(frame, np.uint32, np.uint32(0))
    return 0
