"""How far a model's logits on real prompts move when its matrices have eight bits an entry.

    python benchmarks/quantization_accuracy.py

Every position of the prompts is compared with the same model in float32: how often another token is
the most likely one (flips), the Kullback-Leibler divergence of the next token's distribution, and
the perplexity of the prompts. As served, and, with matrices that are rounded and made float32
again, what groups of rows with a scale of their own, or a head of eight bits, would change.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from prompts import sample_prompts
from tqdm import tqdm

from fjx.bench.report import environment
from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.matmul import Quantization, dequantized, quantize
from fjx.kernels.ragged import RaggedRows
from fjx.models.config import ModelConfig
from fjx.models.granules import Model
from fjx.models.loading.load import load_model_config, load_params
from fjx.models.loading.source import resolve
from fjx.models.tensors import canonical_tensors
from fjx.models.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
LONGEST, PAGE_SIZE = 512, 16
PADDED = (128, LONGEST)
"""Rows of a step."""


@dataclass(frozen=True)
class Variant:
    """One way to round the matrices."""

    name: str
    dtype: str = "float32"
    served: Quantization | None = None
    """As the engine does it."""
    change: Callable[[str, np.ndarray], np.ndarray] = lambda name, values: values


def rounded(
    kind: Quantization, group: int | None, head: bool, name: str, values: np.ndarray
) -> np.ndarray:
    """A tensor as it is meant after quantization with a scale for each column of each group of
    rows."""
    matrix = name.split(".")[-1] in ("qkv", "o", "gate_up", "up", "down")
    if not matrix and not (head and name == "head.unembed"):
        return values
    size = group or len(values)
    parts = (values[begin : begin + size] for begin in range(0, len(values), size))
    return np.concatenate([dequantized(quantize(part, kind)) for part in parts])


VARIANTS = (
    Variant("float32"),
    Variant("bfloat16, as served", "bfloat16"),
    *(Variant(f"{kind}, as served", "bfloat16", kind) for kind in ("int8", "fp8")),
    *(
        Variant(f"{kind}, {name}", change=partial(rounded, kind, group, head))
        for kind in ("int8", "fp8")
        for name, group, head in (
            ("a scale for each column", None, False),
            ("for each column of 128 rows", 128, False),
            ("for each column, the head too", None, True),
        )
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=Path, default=ROOT / ".." / "shared/data/prompts")
    parser.add_argument("--num-prompts", type=int, default=40)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    source = resolve(arguments.model)
    config, tokenizer = load_model_config(source), load_tokenizer(source)
    texts = sample_prompts(arguments.prompts, arguments.num_prompts, seed=3)
    prompts = [np.array(tokenizer.encode(text)[:LONGEST], np.int32) for text in texts]
    host: dict[str, np.ndarray] = {}
    load_params(source, config, lambda name, values: host.update({name: values}), progress=False)
    right, *others = (
        partial(log_probabilities, variant, config, host, prompts) for variant in VARIANTS
    )
    before = right()
    found = {}
    for variant, run in tqdm(list(zip(VARIANTS[1:], others, strict=True)), unit="variant"):
        found[variant.name] = compared(prompts, before, run())
        print(variant.name, json.dumps(found[variant.name]), flush=True)
    command = shlex.join(["python", "benchmarks/quantization_accuracy.py", *sys.argv[1:]])
    result = {
        "about": environment([]) | {"command": command},
        "model": arguments.model,
        "positions": sum(map(len, prompts)),
        "against_float32": found,
    }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def log_probabilities(
    variant: Variant,
    config: ModelConfig,
    host: dict[str, np.ndarray],
    prompts: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """Of the whole vocabulary, after each token of each prompt."""
    model, dtype = Model(replace(config, quantization=variant.served)), jnp.dtype(variant.dtype)
    specs = canonical_tensors(model.config)
    tensors = {
        name: jax.tree.map(jnp.asarray, specs[name].store(variant.change(name, values), dtype))
        for name, values in host.items()
    }
    granules = [model.pack_granule(index, tensors) for index in range(len(model.granules))]
    embed, granule, head = jax.jit(model.embed), jax.jit(model.granule), jax.jit(model.head)
    found = []
    for prompt in prompts:
        tokens, rows = step_of(prompt)
        x = embed(model.pack_embed(tensors), tokens, rows)
        for layers, params in zip(model.granules, granules, strict=True):
            heads = config.num_kv_heads, config.head_dim
            pages = kv_pages_shape(len(layers), len(tokens) // PAGE_SIZE, PAGE_SIZE, *heads)
            x, _ = granule(params, x, jnp.zeros(pages, kv_storage_dtype(dtype)), rows)
        logits = head(model.pack_head(tensors), x)
        found.append(np.array(jax.nn.log_softmax(logits)[: len(prompt)]))
    return found


def step_of(prompt: np.ndarray) -> tuple[Any, RaggedRows]:
    """One request that is prefilled at once."""
    count = len(prompt)
    rows = next(rows for rows in PADDED if count <= rows)
    tokens, positions = np.zeros((2, rows), np.int32)
    request_of = np.full(rows, -1, np.int32)
    tokens[:count], positions[:count], request_of[:count] = prompt, np.arange(count), 0
    pages = np.arange(rows // PAGE_SIZE, dtype=np.int32)[None]
    ends = np.array([0, count], np.int32), np.array([count], np.int32)
    return jnp.asarray(tokens), RaggedRows(*map(jnp.asarray, (positions, request_of, *ends, pages)))


def compared(
    prompts: Sequence[np.ndarray], before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> dict[str, float]:
    """In the mean over all positions."""
    flips, divergence, surprise = [], [], []
    for prompt, one, other in zip(prompts, before, after, strict=True):
        flips.append(one.argmax(axis=1) != other.argmax(axis=1))
        divergence.append((np.exp(one) * (one - other)).sum(axis=1))
        came = np.arange(len(prompt) - 1), prompt[1:]
        surprise.append(one[came] - other[came])
    return {
        "flips": round(float(np.concatenate(flips).mean()), 4),
        "divergence": round(float(np.concatenate(divergence).mean()), 6),
        "perplexity_ratio": round(float(np.exp(np.concatenate(surprise).mean())), 4),
    }


if __name__ == "__main__":
    main()
