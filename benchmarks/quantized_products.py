"""How long a model's products with its matrices take on this CPU, in bfloat16 and in eight bits.

    python benchmarks/quantized_products.py

All layers' products of a model, one after the other in one program, as in a step without attention.
Formats take turns, so that a busy machine slows them all; the median of each counts.
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
from fjx.kernels.matmul import Quantized, matmul, quantize, stored_values

MODELS: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "SmolLM2 135M": (30, ((576, 960), (576, 576), (576, 3072), (1536, 576))),
    "Llama 3.1 8B, 2 of 32 layers": (2, ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))),
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
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64])
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
) -> dict[str, dict[str, float]]:
    """Milliseconds of all products, by format and rows, and the bytes of the matrices."""
    runs: dict[str, Callable[[int], Any]] = {}
    found: dict[str, dict[str, float]] = {}
    for name, (dtype, quantization) in FORMATS.items():
        matrices = [
            stored_matrix(shape, seed, dtype, quantization)
            for seed in range(layers)
            for shape in shapes
        ]
        runs[name] = products(shapes, matrices)
        found[name] = {"megabytes": sum(x.nbytes for x in jax.tree.leaves(matrices)) / 1e6}
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
            found[name][f"{count} rows"] = round(1e3 * statistics.median(seconds[name]), 3)
    return found


def stored_matrix(shape: tuple[int, int], seed: int, dtype: Any, quantization: Any) -> Any:
    matrix: np.ndarray | Quantized
    matrix = np.random.default_rng(seed).standard_normal(shape, np.float32) / np.sqrt(shape[0])
    if quantization is not None:
        matrix = quantize(matrix, quantization)
    return jax.tree.map(jnp.asarray, stored_values(matrix, jnp.dtype(dtype)))


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
