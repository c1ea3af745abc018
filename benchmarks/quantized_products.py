"""How long a model's products with its matrices take on this CPU, in bfloat16 and in eight bits.

    python benchmarks/quantized_products.py

All layers' products of a model, one after the other in one program, as in a step without attention.
Formats take turns; the least and the median of each are given, because whatever else runs on the
machine takes memory bandwidth from them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fjx.bench.report import environment
from fjx.kernels.matmul import matmul, quantize, stored_values

MODELS: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "SmolLM2 135M": (30, ((576, 960), (576, 576), (576, 3072), (1536, 576))),
    "Llama 3.1 8B, 1 of 32 layers": (1, ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))),
}
"""Layers, and the (in, out) matrices of one."""
FORMATS: dict[str, tuple[Any, Any]] = {
    "bfloat16": (jnp.bfloat16, None),
    "int8": (jnp.bfloat16, "int8"),
    "fp8": (jnp.bfloat16, "fp8"),
    "float32": (jnp.float32, None),
    "int8, float32 rows": (jnp.float32, "int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "about": environment([])
        | {"command": shlex.join(["python", "benchmarks/quantized_products.py", *sys.argv[1:]])},
        "milliseconds": {
            model: compare(*MODELS[model], arguments.rows, arguments.repeats)
            for model in arguments.model
        },
    }
    print(json.dumps(result, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def compare(
    layers: int, shapes: Sequence[tuple[int, int]], rows: Sequence[int], repeats: int
) -> dict[str, dict[str, Any]]:
    """Milliseconds of all products, by format and rows, and the bytes of the matrices."""
    matrices = [
        np.random.default_rng(seed).standard_normal(shape, np.float32) / np.sqrt(shape[0])
        for seed in range(layers)
        for shape in shapes
    ]
    runs: dict[str, Callable[[int], Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, form in FORMATS.items():
        weights = [stored(matrix, *form) for matrix in matrices]
        runs[name] = products(shapes, weights)
        found[name] = {"megabytes": sum(x.nbytes for x in jax.tree.leaves(weights)) / 1e6}
    for count in tqdm(rows, desc="rows"):
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run(count)  # compiles
        for _ in range(repeats):
            for name, run in runs.items():
                begin = time.perf_counter()
                run(count)
                seconds[name].append(time.perf_counter() - begin)
        for name in runs:
            found[name][f"{count} rows"] = [
                round(1e3 * of(seconds[name]), 3) for of in (min, statistics.median)
            ]
    return found


def stored(matrix: np.ndarray, dtype: Any, quantization: Any) -> Any:
    narrow = matrix if quantization is None else quantize(matrix, quantization)
    return jax.tree.map(jnp.asarray, stored_values(narrow, jnp.dtype(dtype)))


def products(
    shapes: Sequence[tuple[int, int]], matrices: Sequence[Any]
) -> Callable[[int], jax.Array]:
    """Multiplies so many rows with all matrices, each product waiting for the one before."""

    def chain(matrices: Sequence[Any], xs: dict[int, jax.Array]) -> jax.Array:
        last = jnp.zeros((), jnp.float32)
        for i, weights in enumerate(matrices):
            inputs, outputs = shapes[i % len(shapes)]
            last = matmul(xs[inputs] + last, weights, outputs)[0, 0] * 1e-9
        return last

    run = jax.jit(chain)

    def multiply(rows: int) -> jax.Array:
        xs = {inputs: jnp.ones((rows, inputs), jnp.float32) for inputs, _ in shapes}
        return jax.block_until_ready(run(matrices, xs))

    return multiply


if __name__ == "__main__":
    main()
