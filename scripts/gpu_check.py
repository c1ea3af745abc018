"""What only a GPU can show of fjx's kernels, in one run of less than ten minutes.

    python scripts/gpu_check.py --output FILE.json     on a Hopper GPU
    python scripts/gpu_check.py --lower-only           anywhere: whether they compile for CUDA

On a GPU: the numbers of attention against float64, then its time at decoding, verification and
prefill, beside the bandwidth of a copy and the rate of a matrix product that the same GPU reaches,
and beside cuDNN's attention; drafting beside a verification; then whole decoding steps, beside what
their bytes need. Each result is printed as it comes, and written at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_decoding import LLAMA_8B, PAGE_SIZE, Decoder
from tqdm import tqdm

from fjx.bench.report import environment
from fjx.kernels import mosaic
from fjx.kernels.attention import api, append_and_attend, kv_pages_shape
from fjx.kernels.attention.mosaic import attend
from fjx.kernels.ragged import RaggedRows
from fjx.pipeline.overlap import STREAM_OPTIONS, overlap


@dataclass(frozen=True)
class Heads:
    """A model's attention."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    soft_cap: float | None = None


MODELS = {
    "Llama 3.1 8B": Heads(32, 8, 128),
    "Llama 3.1 70B": Heads(64, 8, 128),
    "Qwen3 32B": Heads(64, 8, 128),
    "Gemma 3 27B": Heads(32, 16, 128, window=1024),
    "Gemma 2 9B": Heads(16, 8, 256, window=4096, soft_cap=50.0),
    "SmolLM2 135M": Heads(9, 3, 64),
}


@dataclass(frozen=True)
class Load:
    """Requests of a step, all alike."""

    requests: int
    rows: int
    """Of each request."""
    context: int
    """Tokens of each, these rows included."""


DECODING = tuple(Load(n, 1, c) for n in (8, 32, 128) for c in (1024, 4096, 32768) if n * c <= 2**21)
VERIFICATION = tuple(Load(n, k, c) for n, c in ((8, 4096), (64, 4096)) for k in (4, 8))
PREFILL = (Load(1, 2048, 2048), Load(4, 512, 2048), Load(1, 2048, 16384))


def main() -> None:
    """Check, print and write."""
    options = parse_options()
    if options.lower_only:
        sys.exit(lower_all())
    if jax.default_backend() != "gpu":
        raise SystemExit("no GPU is here; --lower-only needs none")
    result: dict[str, Any] = environment([]) | {
        "command": " ".join(["python", "scripts/gpu_check.py", *sys.argv[1:]]),
        "device": jax.devices()[0].device_kind,
        "checks": {},
    }
    checks: dict[str, Callable[[], Any]] = {
        "numbers": numbers,
        "copy bandwidth": copy_bandwidth,
        "product rate": product_rate,
        "decoding": partial(attention_times, DECODING),
        "verification": partial(attention_times, VERIFICATION),
        "prefill": partial(attention_times, PREFILL),
        "overlap": overlap_shares,
        "whole steps": decoding_rates,
    }
    failed = []
    for name, check in checks.items():
        print(f"== {name}", flush=True)
        try:
            result["checks"][name] = found = check()
            print(json.dumps(found, indent=1), flush=True)
        except Exception:  # one that fails must not hide what the others show
            failed.append(name)
            result["checks"][name] = {"error": traceback.format_exc(limit=-3)}
            traceback.print_exc()
        if options.output is not None:
            options.output.write_text(json.dumps(result, indent=2) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def lower_all() -> int:
    """Compile everything for CUDA; how many failed."""
    failed = 0
    cases = [(name, rows) for name in MODELS for rows in (1, 64, 512, 2048)]
    for name, rows in tqdm(cases, unit="kernel"):
        load = Load(min(rows, 64), -(-rows // min(rows, 64)), 8192)
        try:
            mosaic.lowers(attention(MODELS[name], "mosaic"), *shapes(MODELS[name], load))
        except Exception as error:
            failed += 1
            print(f"FAILED: {name}, {rows} rows: {error}", file=sys.stderr)
    print(f"{len(cases) - failed} of {len(cases)} compile for CUDA")
    return failed


def attention(model: Heads, implementation: str) -> Callable[..., Any]:
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
            implementation=implementation,  # type: ignore[arg-type]
        )

    return attend


def shapes(model: Heads, load: Load) -> tuple[Any, ...]:
    """Of the arguments of `attention`."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
        jax.eval_shape(lambda: arguments(model, load)),
    )


def arguments(model: Heads, load: Load, seed: int = 0) -> tuple[Any, ...]:
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


def numbers() -> dict[str, Any]:
    """The largest error of each model's attention against float64."""
    found = {}
    for name, model in MODELS.items():
        load = Load(3, 5, 2200)
        given = arguments(model, load)
        out, pages = jax.jit(attention(model, "mosaic"))(*given)
        expected = exactly(model, load, jax.device_get(given), np.asarray(pages, np.float64))
        error = np.abs(np.asarray(out, np.float64) - expected)
        found[name] = {"largest": float(error.max()), "of": float(np.abs(expected).max())}
        if not error.max() <= 2e-2 * np.abs(expected).max():
            raise AssertionError(f"{name}: {found[name]}")
    return found


def exactly(model: Heads, load: Load, given: tuple[Any, ...], pages: np.ndarray) -> np.ndarray:
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


def seconds_of(run: Callable[..., Any], given: tuple[Any, ...], repeats: int = 20) -> float:
    """The median of some calls in a row: the host stays ahead of the GPU."""
    jax.block_until_ready(run(*given))
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(repeats):
            out = run(*given)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - begun) / repeats)
    return statistics.median(times)


def copy_bandwidth() -> dict[str, float]:
    """Bytes a second of reading and writing two gigabytes."""
    x = jnp.zeros(2**30, jnp.bfloat16)
    seconds = seconds_of(jax.jit(lambda x: x + 1), (x,))
    return {"terabytes_per_second": 2 * x.nbytes / seconds / 1e12}


def product_rate() -> dict[str, float]:
    """Operations a second of a large product in bfloat16."""
    n = 8192
    a = jnp.ones((n, n), jnp.bfloat16)
    seconds = seconds_of(jax.jit(lambda a: a @ a), (a,))
    return {"teraflops": 2 * n**3 / seconds / 1e12}


def attention_times(loads: tuple[Load, ...]) -> list[dict[str, Any]]:
    """How long the kernel takes, and what that is in bytes of keys and values, and operations."""
    model = MODELS["Llama 3.1 8B"]
    return [measured(model, load) for load in tqdm(loads)]


def measured(model: Heads, load: Load) -> dict[str, Any]:
    """Of one load, in microseconds."""
    kv_bytes = load.requests * load.context * 2 * model.kv_heads * model.head_dim * 2
    seen = load.context - (load.rows - 1) / 2
    operations = 4 * load.requests * load.rows * seen * model.heads * model.head_dim
    found: dict[str, Any] = asdict(load)
    q, _, _, kv_pages, rows = arguments(model, load)
    for name, run, given in (
        ("mosaic", partial(paged, model), (q, kv_pages, rows)),
        ("cudnn", partial(dense, model, load), dense_arguments(model, load)),
    ):
        seconds = seconds_of(jax.jit(run), given)
        found[name] = {
            "microseconds": 1e6 * seconds,
            "terabytes_per_second": kv_bytes / seconds / 1e12,
            "teraflops": operations / seconds / 1e12,
        }
    return found


def paged(model: Heads, q: Any, kv_pages: Any, rows: RaggedRows, blocks: int = 132) -> Any:
    """The kernel, over keys and values that are in their pages."""
    return attend(q, kv_pages, 0, rows, scale=model.head_dim**-0.5, blocks=blocks)


def overlap_shares() -> list[dict[str, Any]]:
    """Drafting beside a verification, in one program, by the share of multiprocessors that the
    verification's attention may use: how much of the drafting hides, and what both cost."""
    model, load = MODELS["Llama 3.1 8B"], Load(64, 8, 4096)
    q, _, _, kv_pages, rows = arguments(model, load)
    keys = jax.random.split(jax.random.key(1), DRAFT_LAYERS)
    weights = [0.03 * jax.random.normal(key, (1024, 8192), jnp.bfloat16) for key in keys]
    x = jnp.ones((64, 1024), jnp.bfloat16)
    found = []
    for blocks in (132, 110, 88, 66, 44):
        verify = partial(paged, model, blocks=blocks)
        alone = seconds_of(jax.jit(verify), (q, kv_pages, rows))
        drafting = seconds_of(jax.jit(draft), (x, weights))
        run = jax.jit(overlap(verify, draft), compiler_options=STREAM_OPTIONS)
        both = seconds_of(run, ((q, kv_pages, rows), (x, weights)))
        found.append(
            {
                "blocks": blocks,
                "verification_microseconds": 1e6 * alone,
                "drafting_microseconds": 1e6 * drafting,
                "both_microseconds": 1e6 * both,
                "hidden_share_of_drafting": (alone + drafting - both) / drafting,
            }
        )
    return found


DRAFT_LAYERS = 24


def draft(x: Any, weights: list[Any]) -> Any:
    """About what a step of a small draft model multiplies."""
    for each in weights:
        x = x + jax.nn.silu(x @ each) @ each.T
    return x


def decoding_rates() -> list[dict[str, Any]]:
    """Whole steps of eight layers of Llama 3.1 8B's shape with random weights, plain decoding.

    The least time is that of reading every weight and all keys and values once, at the bandwidth of
    a copy.
    """
    bandwidth = 1e12 * copy_bandwidth()["terabytes_per_second"]
    found = []
    for implementation in ("mosaic", "reference"):
        with chosen(implementation):
            decoder = Decoder(LLAMA_8B, num_pages=64 * 1200 // PAGE_SIZE + 1)
            for requests in (1, 8, 64):
                seconds, kv_bytes = decoder.step_seconds(requests, context=1024)
                least = (decoder.weight_bytes + kv_bytes) / bandwidth
                found.append(
                    {
                        "attention": implementation,
                        "requests": requests,
                        "milliseconds": 1e3 * seconds,
                        "least_milliseconds": 1e3 * least,
                        "share_of_the_limit": least / seconds,
                    }
                )
    return found


@contextlib.contextmanager
def chosen(implementation: str) -> Iterator[None]:
    """Attention runs so in programs that are traced meanwhile."""
    before = api._fastest
    api._fastest = lambda kv_pages: implementation  # type: ignore[assignment,return-value]
    try:
        yield
    finally:
        api._fastest = before


def dense(model: Heads, load: Load, q: Any, keys: Any, values: Any) -> Any:
    """JAX's cuDNN attention over keys and values that lie side by side."""
    return jax.nn.dot_product_attention(
        q,
        keys,
        values,
        scale=model.head_dim**-0.5,
        is_causal=load.rows == load.context,
        implementation="cudnn",
    )


def dense_arguments(model: Heads, load: Load) -> tuple[Any, ...]:
    """Of `dense`."""
    of_rows = (load.requests, load.rows, model.heads, model.head_dim)
    of_context = (load.requests, load.context, model.kv_heads, model.head_dim)
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(
        jax.random.normal(key, shape, jnp.bfloat16)
        for key, shape in zip(keys, (of_rows, of_context, of_context), strict=True)
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lower-only", action="store_true", help="needs no GPU")
    parser.add_argument("--output", type=Path, help="also write the result to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
