"""Attention over pages: its numbers against float64, and its time beside cuDNN's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fjx.kernels import mosaic, tuning
from fjx.kernels.attention import append_and_attend, kv_pages_shape
from fjx.kernels.attention.mosaic import attend, tuned_shape
from fjx.kernels.ragged import RaggedRows
from fjx.kernels.tuning import Tuned
from fjx.models.loading.source import cache_root

from .models import DECODING, MODELS, PAGE_SIZE, PREFILL, VERIFICATION, Load, Sizes
from .timing import compiled, seconds_of

# Two blocks of two stages fit on a multiprocessor.
_CANDIDATES = (
    {"blocks": 132, "stages": 5},
    {"blocks": 132, "stages": 3},
    {"blocks": 132, "stages": 2},
    {"blocks": 264, "stages": 2},
)


def lowered() -> Iterator[tuple[str, Callable[[], object]]]:
    """Each model's heads, in steps of a row to those of a long prompt."""
    for name, model in MODELS.items():
        for rows in (1, 64, 512, 2048):
            load = Load(min(rows, 64), -(-rows // min(rows, 64)), 8192)
            given = shapes(model, load)
            yield f"{name}, {rows} rows", partial(mosaic.lowers, attention(model), *given)
    model = MODELS["Llama 3.1 8B"]
    given = jax.eval_shape(partial(paged_arguments, model, Load(64, 1, 1024)))
    for each in _CANDIDATES:
        yield f"with {each}", partial(mosaic.lowers, partial(paged, model, **each), *given)


def checks() -> dict[str, Callable[[], Any]]:
    """Whether it is right, and how fast it is."""
    return {
        "numbers": numbers,
        "decoding": partial(times, DECODING),
        "verification": partial(times, VERIFICATION),
        "prefill": partial(times, PREFILL),
    }


def attention(model: Sizes) -> Callable[..., Any]:
    """A layer's attention over its pages."""

    def attend(q: Any, k: Any, v: Any, kv_pages: Any, rows: RaggedRows) -> Any:
        return append_and_attend(
            q,
            k,
            v,
            kv_pages,
            jnp.int32(0),
            rows,
            scale=model.head_dim**-0.5,
            window=jnp.int32(model.window),
            soft_cap=model.soft_cap,
            implementation="mosaic",
        )

    return attend


def shapes(model: Sizes, load: Load) -> tuple[Any, ...]:
    """Of the arguments of `attention`."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
        jax.eval_shape(lambda: arguments(model, load)),
    )


def arguments(model: Sizes, load: Load, seed: int = 0) -> tuple[Any, ...]:
    """Of `attention`: pages of all requests, spread over the memory."""
    T, R = load.requests * load.rows, load.requests
    width = -(-load.context // PAGE_SIZE)
    pages = R * width + 1
    keys = jax.random.split(jax.random.key(seed), 5)
    draw = jax.random.normal
    q = draw(keys[0], (T, model.heads, model.head_dim), jnp.float32)
    k, v = (
        draw(key, (T, model.kv_heads, model.head_dim), jnp.float32) for key in (keys[1], keys[2])
    )
    shape = kv_pages_shape(1, pages, PAGE_SIZE, model.kv_heads, model.head_dim)
    kv_pages = draw(keys[3], shape, jnp.bfloat16)
    table = 1 + jax.random.permutation(keys[4], pages - 1).reshape(R, width)
    first = load.context - load.rows
    positions = jnp.tile(first + jnp.arange(load.rows), R)
    request_of = jnp.repeat(jnp.arange(R), load.rows)
    rows = RaggedRows(
        positions.astype(jnp.int32),
        request_of.astype(jnp.int32),
        (load.rows * jnp.arange(R + 1)).astype(jnp.int32),
        jnp.full(R, load.context, jnp.int32),
        table.astype(jnp.int32),
    )
    return q, k, v, kv_pages, rows


def numbers() -> Iterator[dict[str, Any]]:
    """The largest error of each model's attention against float64."""
    wrong = []
    for name, model in MODELS.items():
        load = Load(3, 5, 2200)
        given = arguments(model, load)
        out, pages = jax.jit(attention(model))(*given)
        expected = exactly(model, load, jax.device_get(given), np.asarray(pages, np.float64))
        error = np.abs(np.asarray(out, np.float64) - expected).max()
        largest = np.abs(expected).max()
        yield {"model": name, "largest_error": float(error), "largest_value": float(largest)}
        if not error <= 2e-2 * largest:
            wrong.append(name)
    if wrong:
        raise AssertionError(f"wrong attention: {', '.join(wrong)}")


def exactly(model: Sizes, load: Load, given: tuple[Any, ...], pages: np.ndarray) -> np.ndarray:
    """Attention in float64, from the pages after the step."""
    q, _, _, _, rows = given
    group = model.heads // model.kv_heads
    out = np.zeros(q.shape)
    q = q.astype(jnp.bfloat16).astype(np.float64)
    for t, (r, position) in enumerate(zip(rows.request_of, rows.positions, strict=True)):
        kv = np.moveaxis(pages[0, rows.page_table[r]], 0, 2)
        kv = kv.reshape(2, model.kv_heads, -1, model.head_dim)
        begin = max(0, position + 1 - model.window) if model.window else 0
        seen = np.repeat(kv[:, :, begin : position + 1], group, axis=1)
        logits = np.einsum("hd,hcd->hc", q[t], seen[0]) * model.head_dim**-0.5
        if model.soft_cap:
            logits = model.soft_cap * np.tanh(logits / model.soft_cap)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[t] = np.einsum("hc,hcd->hd", weights / weights.sum(-1, keepdims=True), seen[1])
    return out


def times(loads: tuple[Load, ...]) -> Iterator[dict[str, Any]]:
    """How long the kernel takes, and what that is in bytes of keys and values, and operations."""
    tuning.use(cache_root(None))
    model = MODELS["Llama 3.1 8B"]
    calls = [call for load in loads for call in _calls(model, load)]
    programs = compiled([(run, jax.eval_shape(make)) for _, run, make in calls])
    for load in tqdm(loads, unit="load"):
        kv_bytes = load.requests * load.context * 2 * model.kv_heads * model.head_dim * 2
        seen = load.context - (load.rows - 1) / 2
        operations = 4 * load.requests * load.rows * seen * model.heads * model.head_dim
        found: dict[str, Any] = asdict(load)
        for name, _, make in _calls(model, load):
            seconds = seconds_of(programs.pop(0), make())
            found[name] = {
                "microseconds": 1e6 * seconds,
                "terabytes_per_second": kv_bytes / seconds / 1e12,
                "teraflops": operations / seconds / 1e12,
            }
        yield found


def _calls(model: Sizes, load: Load) -> tuple[tuple[str, Any, Callable[[], tuple[Any, ...]]], ...]:
    """What is timed: a name, a function, and what makes its arguments."""
    return (
        ("mosaic", partial(paged, model), partial(paged_arguments, model, load)),
        ("cudnn", partial(dense, model, load), partial(dense_arguments, model, load)),
    )


def tune() -> Iterator[dict[str, Any]]:
    """The fastest blocks and stages for each number of rows, by the sum over its loads."""
    folder, model = cache_root(None), MODELS["Llama 3.1 8B"]
    loads: dict[str, list[Load]] = {}
    for load in (*DECODING, *VERIFICATION, *PREFILL):
        rows = load.requests * load.rows
        sizes = (model.heads, model.kv_heads, model.head_dim)
        loads.setdefault(tuned_shape(rows, *sizes, PAGE_SIZE), []).append(load)
    for shape, alike in loads.items():
        given = [paged_arguments(model, load) for load in alike]
        runs = [partial(paged, model, **each) for each in _CANDIDATES]
        programs = compiled([(run, arguments) for run in runs for arguments in given])
        seconds = [sum(seconds_of(programs.pop(0), arguments) for arguments in given) for _ in runs]
        fastest = _CANDIDATES[seconds.index(min(seconds))]
        device = jax.devices()[0].device_kind
        tuning.keep(folder, [Tuned("attention", shape, device, jax.__version__, fastest)])
        microseconds = [
            each | {"microseconds": 1e6 * of} for each, of in zip(_CANDIDATES, seconds, strict=True)
        ]
        yield {"shape": shape, "fastest": fastest, "measured": microseconds}


def paged_arguments(model: Sizes, load: Load) -> tuple[Any, ...]:
    """Of `paged`."""
    q, _, _, kv_pages, rows = arguments(model, load)
    return q, kv_pages, rows


def paged(
    model: Sizes,
    q: Any,
    kv_pages: Any,
    rows: RaggedRows,
    blocks: int | None = None,
    stages: int | None = None,
) -> Any:
    """The kernel, over keys and values that are in their pages."""
    scale = model.head_dim**-0.5
    return attend(q, kv_pages, 0, rows, scale=scale, blocks=blocks, stages=stages)


def dense(model: Sizes, load: Load, q: Any, keys: Any, values: Any) -> Any:
    """JAX's cuDNN attention over keys and values that lie side by side."""
    return jax.nn.dot_product_attention(
        q,
        keys,
        values,
        scale=model.head_dim**-0.5,
        is_causal=load.rows == load.context,
        implementation="cudnn",
    )


def dense_arguments(model: Sizes, load: Load) -> tuple[Any, ...]:
    """Of `dense`."""
    of_rows = (load.requests, load.rows, model.heads, model.head_dim)
    of_context = (load.requests, load.context, model.kv_heads, model.head_dim)
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(
        jax.random.normal(key, shape, jnp.bfloat16)
        for key, shape in zip(keys, (of_rows, of_context, of_context), strict=True)
    )
