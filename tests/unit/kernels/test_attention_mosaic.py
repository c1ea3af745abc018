"""The GPU's attention kernel: its numbers in an interpreter, and that it compiles for CUDA."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fjx.kernels import mosaic, tuning
from fjx.kernels.attention import kv_pages_shape
from fjx.kernels.attention import mosaic as attention
from fjx.kernels.attention.mosaic import _split, _tiles, append_and_attend, fits
from fjx.kernels.ragged import RaggedRows
from fjx.kernels.tuning import Tuned
from scripts.gpu_checks.models import MODELS
from tests.unit.kernels.gpu_cases import interpreted, one_is_quick
from tests.unit.kernels.test_attention import LAYER, R, Shape, Step, Work, works

CHUNK = 64
"""Positions of a chunk here, so that a context has several."""
NAN, LARGEST = np.array([np.nan, jnp.finfo(jnp.bfloat16).max], jnp.bfloat16).view(np.uint16)

SHAPES = {
    "llama": Shape(heads=4, kv_heads=2, head_dim=64, bfloat16=True),
    "smollm2": Shape(heads=9, kv_heads=3, head_dim=64, bfloat16=True),
    "gemma": Shape(
        page_size=32, heads=2, kv_heads=1, head_dim=128, window=19, soft_cap=3.0, bfloat16=True
    ),
    "large pages": Shape(page_size=128, heads=2, kv_heads=1, head_dim=64, bfloat16=True),
    "large heads": Shape(page_size=32, heads=2, kv_heads=1, head_dim=256, bfloat16=True),
}


@cache
def attend(
    shape: Shape, blocks: int | None, few_rows: int
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """What runs in an interpreter, compiled once; ``few_rows``: what `_FEW_ROWS` is meanwhile."""
    return jax.jit(
        partial(
            append_and_attend,
            layer=LAYER,
            scale=shape.head_dim**-0.5,
            window=jnp.int32(shape.window),
            soft_cap=shape.soft_cap,
            blocks=blocks,
            chunk=CHUNK,
        )
    )


def pages_of(step: Step) -> jax.Array:
    """What is in the pages. Values in slots that were never written are as large as values get:
    pages hold no NaN there."""
    step.pages = step.pages.copy()
    step.pages[:, :, 1][step.pages[:, :, 1] == NAN] = LARGEST
    pages: jax.Array = jax.lax.bitcast_convert_type(step.pages, jnp.bfloat16)
    return pages


def run(
    step: Step, q: Any = None, k: Any = None, rotation: Any = None, blocks: int | None = 3
) -> tuple[np.ndarray, np.ndarray]:
    """With the step's own queries and keys, or those that become them by a rotation."""
    pages = pages_of(step)
    q, k = step.q if q is None else q, step.k if k is None else k
    with mosaic.interpreted(detect_races=True):
        out, after = attend(step.shape, blocks, attention._FEW_ROWS)(
            q, k, step.v, kv_pages=pages, rows=step.rows, rotation=rotation
        )
    return np.asarray(out), np.asarray(jax.lax.bitcast_convert_type(after, jnp.uint16))


@pytest.fixture(params=["few rows", "many rows"])
def size_of_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of many rows take two tiles at once, and do not cut contexts into items."""
    if request.param == "many rows":
        monkeypatch.setattr(attention, "_FEW_ROWS", 0)


@interpreted
@pytest.mark.usefixtures("size_of_step")
@pytest.mark.parametrize("name", SHAPES)
@settings(
    max_examples=3,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(work=works)
def test_the_numbers_are_right_and_nothing_else_is_touched(name: str, work: Work) -> None:
    """What no request owns, and padded rows, are NaN or very large: none may reach a result."""
    step = Step(SHAPES[name], work, 3)
    out, pages = run(step)
    np.testing.assert_allclose(out, step.expected(), atol=2e-2, rtol=2e-2)
    np.testing.assert_array_equal(pages, step.expected_pages(), "pages")


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    kv_heads = draw(st.integers(1, 3))
    return Shape(
        page_size=draw(st.sampled_from([8, 16, 32, 64, 128])),
        heads=kv_heads * draw(st.integers(1, 8)),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([64, 128, 256])),
        bfloat16=True,
        window=draw(st.sampled_from([0, 1, 19, 64])),
        soft_cap=draw(st.sampled_from([None, 0.5, 30.0])),
    )


@interpreted
@pytest.mark.usefixtures("size_of_step")
@settings(
    max_examples=6,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(shape=shapes(), work=works, blocks=st.integers(1, 5))
def test_shapes_at_random(shape: Shape, work: Work, blocks: int) -> None:
    step = Step(shape, work, 4)
    out, pages = run(step, blocks=blocks)
    np.testing.assert_allclose(out, step.expected(), atol=2e-2, rtol=2e-2)
    np.testing.assert_array_equal(pages, step.expected_pages(), "pages")


@interpreted
def test_pages_hold_no_nan() -> None:
    """Values that nobody sees are multiplied by 0."""
    step = Step(SHAPES["llama"], [(3, 5), (2, 9)], 3)
    step.v[0], step.v[1] = np.nan, -np.inf
    _, pages = run(step)
    after = pages[:, :, 1].view(jnp.bfloat16).astype(np.float32)
    assert np.isfinite(after).all()


@interpreted
def test_what_is_rotated_is_what_is_attended_to() -> None:
    step = Step(SHAPES["smollm2"], [(5, 55), (1, 7), (9, 0)], seed=3)
    out, _ = run(step, *step.before_rotation(4))
    np.testing.assert_allclose(out, step.expected(), atol=2e-2, rtol=2e-2)


@interpreted
@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_the_bits_of_a_row_depend_neither_on_others_nor_on_chunks(name: str) -> None:
    """Beside others, row by row or all at once; and however many blocks share the work."""
    length = 70
    whole = Step(SHAPES[name], [(40, 30)], seed=5)
    together, _ = run(whole)
    for blocks, cuts in ((1, [35, 40]), (5, [1, 2, 40])):
        pages, parts, begin = whole.pages, [], 0
        for end in cuts:
            step = Step(SHAPES[name], [(end - begin, length - 40 + begin)], seed=5)
            for array, source in ((step.q, whole.q), (step.k, whole.k), (step.v, whole.v)):
                array[:] = np.nan
                array[: end - begin] = source[begin:end]
            step.pages = pages
            step.rows.page_table[0] = whole.rows.page_table[0]
            out, pages = run(step, blocks=blocks)
            parts.append(out[: end - begin])
            begin = end
        np.testing.assert_array_equal(np.concatenate(parts), together[:40])


@interpreted
@pytest.mark.usefixtures("like_a_gpu")
def test_a_row_has_the_same_bits_in_large_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the chunks of a tile are one item, and the tiles of a request pairs."""
    step = Step(SHAPES["llama"], [(1, 70), (39, 40)], seed=2)
    apart, _ = run(step)
    monkeypatch.setattr(attention, "_FEW_ROWS", 0)
    at_once, _ = run(step)
    np.testing.assert_array_equal(at_once, apart)


@interpreted
@pytest.mark.usefixtures("like_a_gpu")
def test_a_row_has_the_same_bits_with_other_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that may be tuned."""
    step = Step(SHAPES["llama"], [(5, 85), (1, 70), (30, 3)], seed=2)
    untuned, _ = run(step, blocks=3)
    parameters = {"blocks": 5, "stages": 2}
    assert set(parameters) == tuning.TUNABLE["attention"]
    monkeypatch.setattr(tuning, "parameters", lambda kernel, shape: parameters)
    np.testing.assert_array_equal(run(step, blocks=None)[0], untuned)


@pytest.mark.parametrize("rows", [1, 64, 2048])
@pytest.mark.parametrize("model", one_is_quick(MODELS))
def test_it_compiles_for_cuda(model: str, rows: int) -> None:
    sizes = MODELS[model]
    heads, kv_heads, head_dim = sizes.heads, sizes.kv_heads, sizes.head_dim
    pages = kv_pages_shape(4, 1000, 16, kv_heads, head_dim)
    assert fits(pages, jnp.bfloat16)

    def shape(*sizes: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def program(
        q: Any, k: Any, v: Any, pages: Any, layer: Any, window: Any, rows: Any, angles: Any
    ) -> Any:
        return append_and_attend(
            q,
            k,
            v,
            pages,
            layer,
            rows,
            rotation=angles,
            scale=head_dim**-0.5,
            window=window,
            soft_cap=sizes.soft_cap,
        )

    requests = min(rows, 64)
    at = RaggedRows(
        shape(rows), shape(rows), shape(requests + 1), shape(requests), shape(requests, 512)
    )
    q = shape(rows, heads, head_dim, dtype=jnp.float32)
    k = v = shape(rows, kv_heads, head_dim, dtype=jnp.float32)
    angle = shape(rows, head_dim // 2, dtype=jnp.float32)
    kv_pages = shape(*pages, dtype=jnp.bfloat16)
    text = mosaic.lowers(program, q, k, v, kv_pages, shape(), shape(), at, (angle, angle))
    assert "mosaic_gpu" in text


def test_tuned_parameters_are_those_that_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(**options: Any) -> str:
        pages, shape = kv_pages_shape(1, 100, 16, 2, 64), jax.ShapeDtypeStruct
        ints = partial(shape, dtype=jnp.int32)
        rows = RaggedRows(ints((8,)), ints((8,)), ints((9,)), ints((8,)), ints((8, 64)))
        q, kv_pages = shape((8, 4, 64), jnp.float32), shape(pages, jnp.bfloat16)
        run = partial(attention.attend, layer=0, scale=0.1, **options)
        return mosaic.lowers(lambda q, kv, rows: run(q, kv, rows=rows), q, kv_pages, rows)

    untuned = compiled()
    assert untuned == compiled(blocks=132)
    shape = attention.tuned_shape(8, 4, 2, 64, 16)
    tuned = Tuned("attention", shape, "cpu", jax.__version__, {"blocks": 7, "stages": 2})
    monkeypatch.setattr(tuning, "_tables", [{tuned.key: tuned}])
    assert compiled() == compiled(blocks=7, stages=2)
    assert compiled() != untuned
    assert compiled(blocks=132, stages=5) == untuned


@pytest.mark.parametrize(
    ("page_size", "head_dim", "dtype"),
    [(16, 64, jnp.float32), (16, 80, jnp.bfloat16), (24, 64, jnp.bfloat16)],
    ids=["float32", "size of a head", "size of a page"],
)
def test_what_the_kernel_does_not_take(page_size: int, head_dim: int, dtype: Any) -> None:
    assert not fits(kv_pages_shape(1, 4, page_size, 2, head_dim), dtype)


@pytest.mark.parametrize("window", [0, 50])
@settings(max_examples=30, derandomize=True)
@given(
    work=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 500)), min_size=1, max_size=R),
    tokens=st.sampled_from([2, 8, 64]),
)
def test_items_cover_what_each_row_sees_once(window: int, work: Work, tokens: int) -> None:
    rows = sum(count for count, _ in work)
    counts = np.array([count for count, _ in work] + [0] * (R - len(work)))
    context = np.array([sum(each) for each in work] + [0] * (R - len(work)), np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    T, chunk, chunks = 128, 128, 5
    at = RaggedRows(jnp.zeros(T, jnp.int32), None, starts, context, None)  # type: ignore[arg-type]
    tiles, num_tiles, of_tile = _tiles(at, tokens, jnp.int32(window))
    items, num_items, tiles = _split(of_tile, tiles, num_tiles, chunk, chunks)
    seen: dict[int, list[int]] = {row: [] for row in range(rows)}
    for i in range(int(num_items)):
        request, first_row, count, position, begin, end, number = (int(v[i]) for v in items)
        assert begin % 64 == 0
        assert number * chunk <= begin < end <= (number + 1) * chunk
        assert starts[request] <= first_row
        assert first_row + count <= starts[request + 1]
        for token in range(count):
            oldest = position + token - window + 1 if window else 0
            seen[first_row + token] += range(max(begin, oldest), min(end, position + token + 1))
    for r, (count, before) in enumerate(work):
        for i in range(count):
            oldest = max(before + i - window + 1, 0) if window else 0
            assert seen[starts[r] + i] == list(range(oldest, before + i + 1))
    for i in range(int(num_tiles)):
        row, count, first_item, first_chunk, of = (int(v[i]) for v in tiles)
        assert [int(items.chunk[first_item + c]) for c in range(of)] == [
            first_chunk + c for c in range(of)
        ]
        assert {int(v) for v in items.first_row[first_item : first_item + of]} == {row}
        assert count > 0
