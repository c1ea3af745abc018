"""What writes a GPU's KV pages: its numbers in an interpreter, and that it compiles for CUDA."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.kernels import mosaic
from fjx.kernels.attention import kv_pages_shape, reference
from fjx.kernels.attention.mosaic_append import append
from fjx.kernels.attention.rotation import rotate
from fjx.kernels.ragged import RaggedRows
from scripts.gpu_checks.models import EIGHTH_OF_70B, HEADS
from tests.unit.kernels.gpu_cases import interpreted

LAYERS, LAYER, PAGES, REQUESTS, WIDTH, SLACK = 2, 1, 13, 3, 4, 2


@dataclass(frozen=True)
class Sizes:
    kv_heads: int
    group: int
    head_dim: int
    page_size: int
    rows: int
    padded: int
    blocks: int
    rotated: bool


sizes = st.builds(
    Sizes,
    kv_heads=st.sampled_from([1, 2, 3, 8]),
    group=st.sampled_from([1, 3, 4, 8]),
    head_dim=st.sampled_from([64, 128, 256]),
    page_size=st.sampled_from([8, 32]),
    rows=st.integers(1, 12),
    padded=st.integers(0, 3),
    blocks=st.sampled_from([1, 2, 132]),
    rotated=st.booleans(),
)


class Batch:
    """Random rows at random places. What no row owns is NaN, and so are padded rows."""

    def __init__(self, of: Sizes, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        total = of.rows + of.padded

        def draw(*shape: int) -> np.ndarray:
            values = np.full((total, *shape), np.nan, np.float32)
            values[: of.rows] = random.standard_normal((of.rows, *shape))
            return values

        self.sizes = of
        self.q = draw(of.kv_heads * of.group, of.head_dim)
        self.k, self.v = draw(of.kv_heads, of.head_dim), draw(of.kv_heads, of.head_dim)
        angles = 1000 * draw(of.head_dim // 2)
        self.rotation = (np.cos(angles), np.sin(angles)) if of.rotated else None
        shape = kv_pages_shape(LAYERS, PAGES, of.page_size, of.kv_heads, of.head_dim)
        self.pages = jnp.full(shape, jnp.nan, jnp.bfloat16)
        slots = random.choice(REQUESTS * WIDTH * of.page_size, of.rows, replace=False)
        request, position = np.divmod(slots, WIDTH * of.page_size)
        padding = (0, of.padded)
        self.rows = RaggedRows(
            np.pad(position, padding).astype(np.int32),
            np.pad(request, padding, constant_values=-1).astype(np.int32),
            np.zeros(REQUESTS + 1, np.int32),  # where requests begin and end is not read
            np.zeros(REQUESTS, np.int32),
            random.permutation(PAGES)[: REQUESTS * WIDTH].reshape(REQUESTS, WIDTH).astype(np.int32),
        )

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Queries of the rows that are not padded, (K, rows, group, D), and pages."""
        of = self.sizes
        places = 1 << (of.group - 1).bit_length()
        with mosaic.interpreted(detect_races=True):
            queries, pages = append(
                self.q, self.k, self.v, self.pages, LAYER, self.rows, self.rotation,
                group=places, slack=SLACK, blocks=of.blocks,
            )  # fmt: skip
        assert queries.dtype == pages.dtype == jnp.bfloat16
        by_row = queries.reshape(of.kv_heads, -1, places, of.head_dim)
        assert by_row.shape[1] == of.rows + of.padded + SLACK
        return np.asarray(by_row[:, : of.rows, : of.group]), np.asarray(pages)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """By plain jnp, as one program."""
        of = self.sizes

        @jax.jit
        def both(
            q: Any, k: Any, v: Any, pages: Any, rows: RaggedRows, rotation: Any
        ) -> tuple[jax.Array, jax.Array]:
            q = rotate(q, rotation)[: of.rows].astype(jnp.bfloat16)
            q = jnp.moveaxis(q.reshape(of.rows, of.kv_heads, of.group, of.head_dim), 1, 0)
            dtype = jnp.dtype(jnp.bfloat16)
            return q, reference.append(rotate(k, rotation), v, pages, LAYER, rows, dtype)

        q, pages = both(self.q, self.k, self.v, self.pages, self.rows, self.rotation)
        return np.asarray(q), np.asarray(pages)


def assert_next_to(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal, or neighbours among the numbers of bfloat16; NaN where NaN is expected.

    A compiler may fuse a product of the rotation with the sum, in the kernel and in XLA's program
    alike, so that one float32 may round the other way. Where the sum cancels, its last bits are
    more than a neighbour apart: there the error of a float32 product is allowed.
    """
    ordered = [x.view(np.int16).astype(np.int32) for x in (got, expected)]
    ordered = [np.where(bits < 0, -(bits & 0x7FFF), bits) for bits in ordered]
    apart = np.abs(ordered[0] - ordered[1])
    small = np.abs(got.astype(np.float32) - expected.astype(np.float32)) < 2.0**-20
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    assert ((apart <= 1) | small | np.isnan(expected)).all()


@interpreted
@settings(max_examples=15, derandomize=True)
@given(of=sizes, seed=st.integers(0, 1000))
def test_rows_are_rotated_and_written_and_nothing_else_is_touched(of: Sizes, seed: int) -> None:
    batch = Batch(of, seed)
    for got, expected in zip(batch.run(), batch.expected(), strict=True):
        assert_next_to(got, expected)


@interpreted
def test_without_rotation_what_is_written_is_what_was_given() -> None:
    batch = Batch(Sizes(2, 3, 64, 8, rows=5, padded=3, blocks=2, rotated=False))
    for got, expected in zip(batch.run(), batch.expected(), strict=True):
        np.testing.assert_array_equal(got.view(np.uint16), expected.view(np.uint16))


@interpreted
def test_the_bits_of_a_row_do_not_depend_on_the_others() -> None:
    batch = Batch(Sizes(2, 4, 128, 32, rows=5, padded=1, blocks=2, rotated=True))
    together, pages = batch.run()
    for row in range(5):
        alone = Batch(Sizes(2, 4, 128, 32, rows=1, padded=0, blocks=1, rotated=True))
        assert batch.rotation is not None
        alone.q, alone.k, alone.v = (x[row : row + 1] for x in (batch.q, batch.k, batch.v))
        alone.rotation = batch.rotation[0][row : row + 1], batch.rotation[1][row : row + 1]
        alone.rows = batch.rows._replace(
            positions=batch.rows.positions[row : row + 1],
            request_of=batch.rows.request_of[row : row + 1],
        )
        queries, after = alone.run()
        bits = queries.view(np.uint16), together[:, row : row + 1].view(np.uint16)
        np.testing.assert_array_equal(*bits)
        written = ~np.isnan(after)
        assert written.sum() == 2 * 2 * 128
        np.testing.assert_array_equal(
            after[written].view(np.uint16), pages[written].view(np.uint16)
        )


MODELS = HEADS | EIGHTH_OF_70B


@pytest.mark.parametrize("rows", [1, 2048])
@pytest.mark.parametrize("model", MODELS)
def test_it_compiles_for_cuda_and_nothing_runs_beside_it(model: str, rows: int) -> None:
    heads, kv_heads, head_dim = MODELS[model]

    def shape(*sizes: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def program(q: Any, k: Any, v: Any, pages: Any, layer: Any, rows: Any, angles: Any) -> Any:
        return append(q, k, v, pages, layer, rows, angles, group=8, slack=8)

    requests = min(rows, 64)
    at = RaggedRows(
        shape(rows), shape(rows), shape(requests + 1), shape(requests), shape(requests, 512)
    )
    q = shape(rows, heads, head_dim, dtype=jnp.float32)
    k = v = shape(rows, kv_heads, head_dim, dtype=jnp.float32)
    angle = shape(rows, head_dim // 2, dtype=jnp.float32)
    pages = shape(*kv_pages_shape(4, 1000, 16, kv_heads, head_dim), dtype=jnp.bfloat16)
    text = mosaic.lowers(program, q, k, v, pages, shape(), at, (angle, angle))
    assert text.count("stablehlo.custom_call @") == 1
    defined = re.findall(r"(%\w+) = stablehlo\.(\w+)", text)
    used = {operation for name, operation in defined if len(re.findall(f"{name}\\b", text)) > 1}
    assert used <= {"reshape", "broadcast_in_dim", "constant"}, "nothing that moves or converts"
