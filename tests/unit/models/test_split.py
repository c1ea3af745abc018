"""A tensor that is split over devices is whole again when its shards are joined, to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fjx.kernels.matmul.api as matmul
from fjx.kernels.matmul.quantized import quantize
from fjx.models.split import TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # of NaN

DTYPES = [jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)]
DEGREES = (1, 2, 4)


@pytest.fixture(params=["packed", "plain"], scope="module")
def storage(request: pytest.FixtureRequest) -> Iterator[str]:
    """As on a CPU, or as on other platforms."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(matmul, "_packs", lambda *given: False)
        yield request.param


@st.composite
def matrices(draw: st.DrawFn, quantized: bool = False) -> TensorSpec:
    """A matrix that is split along one of its axes, maybe of fused parts."""
    quantization = draw(st.sampled_from(["int8", "fp8"])) if quantized else None
    other = draw(st.integers(1, 40))
    if draw(st.booleans()):
        split = 4 * draw(st.integers(1, 40))
        axes, shape = ("heads", "embed"), (split, other)
        return TensorSpec(shape, axes, quantized or draw(st.booleans()), quantization=quantization)
    parts = tuple(4 * width for width in draw(st.lists(st.integers(1, 30), max_size=3)))
    width = sum(parts) or 4 * draw(st.integers(1, 60))
    multiplied = quantized or draw(st.booleans())
    return TensorSpec((other, width), ("embed", "mlp"), multiplied, parts, quantization)


vectors = st.builds(
    lambda parts: TensorSpec((sum(parts),), ("heads",), parts=tuple(parts)),
    st.lists(st.integers(1, 20).map(lambda width: 4 * width), min_size=1, max_size=3),
)
unsplit = st.builds(
    lambda shape: TensorSpec(tuple(shape), (None,) * len(shape)),
    st.lists(st.integers(1, 20), min_size=1, max_size=2),
)
tables = st.builds(
    lambda vocabulary, width: TensorSpec((4 * vocabulary, width), ("vocab", "embed"), tied=True),
    st.integers(1, 40),
    st.integers(1, 40),
)
specs = st.one_of(matrices(), vectors, unsplit, tables)


def values_of(spec: TensorSpec, seed: int) -> np.ndarray:
    """Any bits of float32, those of NaN and of zeros with a sign among them."""
    bits = np.random.default_rng(seed).integers(0, 2**32, spec.shape, np.uint32)
    bits.reshape(-1)[:2] = 0x80000000
    return bits.view(np.float32)


def as_stored(spec: TensorSpec, values: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
    return values.astype(dtype if values.ndim > 1 else jnp.float32)


def bits(array: np.ndarray) -> bytes:
    """All of them, but that one NaN is as good as another: casts to bfloat16 keep its payload in
    some lengths of arrays and not in others."""
    whole = np.array(array)
    whole[np.isnan(whole.astype(np.float32))] = np.nan
    return whole.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(derandomize=True, max_examples=60)
@given(spec=specs, seed=st.integers(0, 99), degree=st.sampled_from(DEGREES))
def test_joining_the_shards_gives_the_tensor(
    storage: str, dtype: jnp.dtype, spec: TensorSpec, seed: int, degree: int
) -> None:
    values = values_of(spec, seed)
    shards = spec.shards(values, dtype, degree)
    assert len(shards) == (1 if spec.split_axis is None else degree)
    whole = spec.whole(shards if spec.split_axis is not None else shards * degree)
    expected = as_stored(spec, values, dtype)
    assert (whole.shape, whole.dtype) == (expected.shape, expected.dtype)
    assert bits(whole) == bits(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(derandomize=True, max_examples=60)
@given(
    spec=specs,
    seed=st.integers(0, 99),
    degrees=st.sampled_from(list(itertools.permutations(DEGREES, 2))),
)
def test_changing_the_degree_gives_the_shards_of_the_new_one(
    storage: str, dtype: jnp.dtype, spec: TensorSpec, seed: int, degrees: tuple[int, int]
) -> None:
    before, after = degrees
    values = values_of(spec, seed)
    whole = spec.whole(spec.shards(values, dtype, before))
    again = spec.shards(whole, dtype, after)
    assert [bits(each) for each in again] == [
        bits(each) for each in spec.shards(values, dtype, after)
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(derandomize=True, max_examples=60)
@given(spec=specs, degree=st.sampled_from(DEGREES))
def test_shards_side_by_side_have_the_shape_that_is_compiled_for(
    storage: str, dtype: jnp.dtype, spec: TensorSpec, degree: int
) -> None:
    shards = spec.shards(values_of(spec, 0), dtype, degree)
    axis, struct = spec.stored_axis(dtype), spec.struct(dtype, degree)
    assert (axis is None) == (spec.split_axis is None)
    joined = shards[0] if axis is None else np.concatenate(shards, axis=axis)
    assert (joined.shape, joined.dtype) == (struct.shape, struct.dtype)
    if axis is not None:
        assert struct.shape[axis] % degree == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(derandomize=True, max_examples=60)
@given(
    spec=matrices(quantized=True),
    seed=st.integers(0, 99),
    degrees=st.sampled_from(list(itertools.permutations(DEGREES, 2))),
)
def test_shards_of_a_quantized_matrix_are_of_the_matrix_that_one_device_has(
    storage: str, dtype: jnp.dtype, spec: TensorSpec, seed: int, degrees: tuple[int, int]
) -> None:
    """At once, and after a change of the degree; as long as the compiled program expects."""
    before, after = degrees
    assert spec.quantization is not None
    values = np.random.default_rng(seed).standard_normal(spec.shape, np.float32)
    expected = quantize(values, spec.quantization)
    moved = spec.shards(spec.whole(spec.shards(values, dtype, before)), dtype, after)
    for shards in (spec.shards(values, dtype, after), moved):
        whole = spec.whole(shards)
        assert jax.tree.map(np.ndarray.tobytes, whole) == jax.tree.map(np.ndarray.tobytes, expected)
    structs, axes = spec.struct(dtype, after), (spec.stored_axis(dtype), spec.scale_axis)
    of_leaves = zip(*(shard[:2] for shard in moved), strict=True)
    for struct, axis, parts in zip(structs[:2], axes, of_leaves, strict=True):
        joined = parts[0] if axis is None else np.concatenate(parts, axis)
        assert (joined.shape, joined.dtype) == (struct.shape, struct.dtype)


def test_each_device_gets_its_columns_of_every_fused_part(storage: str) -> None:
    """Queries, keys and values side by side: device 1 of 2 has the second half of each."""
    spec = TensorSpec((1, 16), ("embed", "heads"), parts=(8, 4, 4))
    _, second = spec.shards(np.arange(16, dtype=np.float32)[None], jnp.dtype(jnp.float32), 2)
    assert second.tolist() == [[4, 5, 6, 7, 10, 11, 14, 15]]
    bias = TensorSpec((16,), ("heads",), parts=(8, 4, 4))
    _, second = bias.shards(np.arange(16, dtype=np.float32), jnp.dtype(jnp.bfloat16), 2)
    assert second.tolist() == [4, 5, 6, 7, 10, 11, 14, 15]
    assert second.dtype == np.float32


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tied_table_is_stored_as_the_head_where_that_is_packed(
    storage: str, dtype: jnp.dtype, degree: int
) -> None:
    table = TensorSpec((168, 9), ("vocab", "embed"), tied=True)
    head = TensorSpec((9, 168), ("embed", "vocab"), multiplied=True)
    values = np.random.default_rng(0).standard_normal(table.shape, np.float32)
    of_table = table.shards(values, dtype, degree)
    of_head = head.shards(np.ascontiguousarray(values.T), dtype, degree)
    same = [np.array_equal(*pair) for pair in zip(of_table, of_head, strict=True)]
    assert all(same) == (storage == "packed" and matmul.packs(dtype))
    struct = table.struct(dtype, degree)
    assert (table.stored_axis(dtype) == head.stored_axis(dtype)) == all(same)
    assert struct.size == degree * of_table[0].size
