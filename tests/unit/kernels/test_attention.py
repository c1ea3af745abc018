"""Ragged paged attention against a plain float64 computation, request by request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.kernels.attention import Rotation, append_and_attend, kv_pages_shape
from fjx.kernels.attention.rotation import rotate
from fjx.kernels.ragged import RaggedRows
from fjx.kernels.vectors import LANES

T, R, P, LAYERS, LAYER = 40, 5, 6, 2, 1
"""Rows, requests and pages of a request, padded; the layer that attends."""


@dataclass(frozen=True)
class Shape:
    page_size: int = 16
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    bfloat16: bool = False
    window: int = 0
    soft_cap: float | None = None


SHAPES = {
    "llama": Shape(),
    "smollm2": Shape(heads=9, kv_heads=3, bfloat16=True),
    "one head each": Shape(page_size=32, heads=3, kv_heads=3, head_dim=80),
    "groups of eight": Shape(page_size=32, heads=8, kv_heads=1, head_dim=128, bfloat16=True),
    "gemma": Shape(heads=4, kv_heads=1, head_dim=256, window=19, soft_cap=3.0),
    "small window": Shape(page_size=32, head_dim=80, bfloat16=True, window=3),
    "soft cap": Shape(head_dim=128, soft_cap=0.5),
}
IMPLEMENTATIONS = ["reference", "numba"]

# Rows in this step and tokens before it, for each request.
Work = list[tuple[int, int]]
works = st.lists(
    st.tuples(st.one_of(st.just(1), st.integers(1, 30)), st.integers(0, 60)), min_size=1, max_size=R
).filter(lambda work: sum(rows for rows, _ in work) <= T)


@cache
def attend(shape: Shape, implementation: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return jax.jit(
        lambda q, k, v, pages, rows, rotation=None: append_and_attend(
            q,
            k,
            v,
            pages,
            LAYER,
            rows,
            rotation=rotation,
            scale=shape.head_dim**-0.5,
            window=jnp.int32(shape.window),
            soft_cap=shape.soft_cap,
            implementation=implementation,  # type: ignore[arg-type]
        )
    )


def stored(values: np.ndarray, shape: Shape) -> np.ndarray:
    """As kept in pages."""
    if shape.bfloat16:
        return np.asarray(jnp.asarray(values, jnp.bfloat16)).view(np.uint16)
    return values.astype(np.float32)


def widened(pages: np.ndarray, shape: Shape) -> np.ndarray:
    if shape.bfloat16:
        pages = (pages.astype(np.uint32) << 16).view(np.float32)
    return pages.astype(np.float64)


def same(pages: np.ndarray) -> np.ndarray:
    return pages


def with_keys_transposed(pages: np.ndarray) -> np.ndarray:
    """As the Numba kernel keeps them: sixteen keys side by side."""
    pages = pages.copy()
    *outer, page_size, head_dim = pages[:, :, 0].shape
    blocks = pages[:, :, 0].reshape(*outer, page_size // LANES, LANES, head_dim)
    pages[:, :, 0] = blocks.swapaxes(-1, -2).reshape(*outer, page_size, head_dim)
    return pages


def with_keys_back(pages: np.ndarray) -> np.ndarray:
    pages = pages.copy()
    *outer, page_size, head_dim = pages[:, :, 0].shape
    blocks = pages[:, :, 0].reshape(*outer, page_size // LANES, head_dim, LANES)
    pages[:, :, 0] = blocks.swapaxes(-1, -2).reshape(*outer, page_size, head_dim)
    return pages


class Step:
    """Random requests in the middle of their lives. What no request owns is NaN."""

    def __init__(self, shape: Shape, work: Work, seed: int) -> None:
        random = np.random.default_rng(seed)
        num_pages = R * P + 1
        full = kv_pages_shape(LAYERS, num_pages, shape.page_size, shape.kv_heads, shape.head_dim)
        free = random.permutation(np.arange(1, num_pages)).tolist()
        counts = [rows for rows, _ in work]
        total, n = sum(counts), len(work)
        self.shape, self.work = shape, work
        pages = np.full(full, np.nan, np.float32)
        table = np.zeros((R, P), np.int32)
        self.keys, self.values = [], []
        self.q, self.k, self.v = (
            np.full((T, heads, shape.head_dim), np.nan, np.float32)
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
        )
        self.q[:total] = 2 * random.standard_normal((total, *self.q.shape[1:]))
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        for r, (rows, before) in enumerate(work):
            used = -(-(rows + before) // shape.page_size)
            table[r, :used] = [free.pop() for _ in range(used)]
            kv = random.standard_normal((2, rows + before, shape.kv_heads, shape.head_dim))
            for position in range(before):
                page, slot = divmod(position, shape.page_size)
                pages[LAYER, table[r, page], :, :, slot] = kv[:, position]
            begin, end = self.starts[r : r + 2]
            self.k[begin:end], self.v[begin:end] = kv[:, before:]
            self.keys.append(widened(stored(kv[0].astype(np.float32), shape), shape))
            self.values.append(widened(stored(kv[1].astype(np.float32), shape), shape))
        self.pages = stored(pages, shape)
        positions, request_of = np.zeros(T, np.int32), np.full(T, -1, np.int32)
        for r, (rows, before) in enumerate(work):
            begin, end = self.starts[r : r + 2]
            positions[begin:end] = before + np.arange(rows)
            request_of[begin:end] = r
        query_start = np.full(R + 1, total, np.int32)
        query_start[: n + 1] = self.starts
        context = np.array([sum(each) for each in work] + [0] * (R - n), np.int32)
        self.rows = RaggedRows(positions, request_of, query_start, context, table)

    def before_rotation(self, seed: int) -> tuple[np.ndarray, np.ndarray, Rotation]:
        """Queries and keys that become these by some rotation, and this."""
        angles = np.full((T, self.shape.head_dim // 2), np.nan)
        used = self.starts[-1]
        angles[:used] = 1000 * np.random.default_rng(seed).standard_normal((used, angles.shape[1]))
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        q, k = (np.asarray(rotate(jnp.asarray(x), (cos, -sin))) for x in (self.q, self.k))
        return q, k, (cos, sin)

    def run(
        self, implementation: str, q: Any = None, k: Any = None, rotation: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """With its own queries and keys, or those that become them by a rotation."""
        own, back = (
            (with_keys_transposed, with_keys_back) if implementation == "numba" else (same, same)
        )
        out, pages = attend(self.shape, implementation)(
            self.q if q is None else q,
            self.k if k is None else k,
            self.v,
            own(self.pages),
            self.rows,
            rotation,
        )
        return np.asarray(out), back(np.asarray(pages))

    def expected(self) -> np.ndarray:
        shape = self.shape
        out = np.zeros((T, shape.heads, shape.head_dim))
        group = shape.heads // shape.kv_heads
        for r, (rows, before) in enumerate(self.work):
            keys = np.repeat(self.keys[r], group, axis=1)
            values = np.repeat(self.values[r], group, axis=1)
            for i in range(rows):
                end = before + i + 1
                begin = max(0, end - shape.window) if shape.window else 0
                t = self.starts[r] + i
                logits = np.einsum("hd,chd->hc", self.q[t].astype(float), keys[begin:end])
                logits *= shape.head_dim**-0.5
                if shape.soft_cap:
                    logits = shape.soft_cap * np.tanh(logits / shape.soft_cap)
                weights = np.exp(logits - logits.max(-1, keepdims=True))
                weights /= weights.sum(-1, keepdims=True)
                out[t] = np.einsum("hc,chd->hd", weights, values[begin:end])
        return out

    def expected_pages(self) -> np.ndarray:
        pages = self.pages.copy()
        for t in range(self.starts[-1]):
            r, position = self.rows.request_of[t], self.rows.positions[t]
            page, slot = divmod(position, self.shape.page_size)
            new = np.stack([self.k[t], self.v[t]])
            pages[LAYER, self.rows.page_table[r, page], :, :, slot] = stored(new, self.shape)
        return pages


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=6, derandomize=True)
@given(work=works, seed=st.integers(0, 1000))
def test_attention_is_exact_and_touches_only_its_own(
    name: str, implementation: str, work: Work, seed: int
) -> None:
    """Slots that no request owns, and padded rows, are NaN: none may reach a result."""
    step = Step(SHAPES[name], work, seed)
    out, pages = step.run(implementation)
    np.testing.assert_allclose(out, step.expected(), atol=2e-5, rtol=2e-5)
    np.testing.assert_array_equal(
        pages.view(np.uint8), step.expected_pages().view(np.uint8), "pages"
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_queries_and_keys_are_rotated_by_their_rows_angles(name: str, implementation: str) -> None:
    step = Step(SHAPES[name], [(5, 30), (1, 7), (12, 0)], seed=3)
    out, pages = step.run(implementation, *step.before_rotation(4))
    rounding = 2.0**-7 if step.shape.bfloat16 else 1e-5
    kept, expected = (widened(each, step.shape) for each in (pages, step.expected_pages()))
    np.testing.assert_allclose(kept, expected, rtol=rounding, atol=1e-5)
    np.testing.assert_allclose(out, step.expected(), rtol=2 * rounding, atol=2 * rounding)


@pytest.mark.parametrize("name", SHAPES)
def test_large_logits_do_not_overflow(name: str) -> None:
    step = Step(SHAPES[name], [(30, 20), (1, 59)], seed=1)
    step.q[:31] *= 300
    for implementation in IMPLEMENTATIONS:
        out, _ = step.run(implementation)
        np.testing.assert_allclose(out, step.expected(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=5, derandomize=True)
@given(work=works, seed=st.integers(0, 1000))
def test_the_bits_of_a_request_do_not_depend_on_the_others(
    name: str, work: Work, seed: int
) -> None:
    step = Step(SHAPES[name], work, seed)
    together, _ = step.run("numba")
    for r, (rows, _) in enumerate(work):
        begin, end = step.starts[r : r + 2]
        alone = Step(SHAPES[name], [work[r]], seed)
        alone.pages = step.pages
        for array, source in ((alone.q, step.q), (alone.k, step.k), (alone.v, step.v)):
            array[:] = np.nan
            array[:rows] = source[begin:end]
        alone.rows.page_table[0] = step.rows.page_table[r]
        out, _ = alone.run("numba")
        np.testing.assert_array_equal(out[:rows], together[begin:end])


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=5, derandomize=True)
@given(cuts=st.lists(st.integers(1, 35), max_size=4), seed=st.integers(0, 1000))
def test_the_bits_of_a_row_do_not_depend_on_chunks(name: str, cuts: list[int], seed: int) -> None:
    length = 36
    whole = Step(SHAPES[name], [(length, 0)], seed)
    at_once, final = whole.run("numba")
    pages, parts = whole.pages, []
    ends = sorted({*cuts, length})
    for begin, end in zip([0, *ends], ends, strict=False):
        chunk = Step(SHAPES[name], [(end - begin, begin)], seed)
        for array, source in ((chunk.q, whole.q), (chunk.k, whole.k), (chunk.v, whole.v)):
            array[:] = np.nan
            array[: end - begin] = source[begin:end]
        chunk.pages = pages
        chunk.rows.page_table[0] = whole.rows.page_table[0]
        out, pages = chunk.run("numba")
        parts.append(out[: end - begin])
    np.testing.assert_array_equal(np.concatenate(parts), at_once[:length])
    np.testing.assert_array_equal(pages.view(np.uint8), final.view(np.uint8))


def test_a_page_size_without_a_kernel_falls_back() -> None:
    step = Step(Shape(page_size=24), [(10, 30), (1, 5)], seed=0)
    chosen = jax.jit(
        lambda q, k, v, pages, rows: append_and_attend(
            q, k, v, pages, LAYER, rows, scale=step.shape.head_dim**-0.5
        )
    )(step.q, step.k, step.v, step.pages, step.rows)[0]
    np.testing.assert_allclose(chosen, step.expected(), atol=2e-5, rtol=2e-5)
