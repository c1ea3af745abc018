"""What the pieces of a real model cost: the granule graph that plans are made from.

Bytes are exact, taken from the stored arrays. Seconds are the roofline's
(`fjx.sharding.costs.analytic`), for want of a profile: they rank cuts and promise no milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from fjx.models.config import ModelConfig
from fjx.models.granules import WHOLE, Model, Params
from fjx.sharding.costs.analytic import DeviceFigures, ModelSizes, analytic_graph
from fjx.sharding.costs.graph import GranuleGraph, PieceCost

DEVICE_FIGURES: dict[str, DeviceFigures] = {
    # Measured with SmolLM2 in bfloat16 on two AVX-512 cores; docs/architecture.md, "CPU kernels".
    "cpu": DeviceFigures(flops_per_second=4.1e11, memory_bytes_per_second=3.4e10),
    # NVIDIA's figures for the H100 SXM: dense bfloat16 products, HBM3.
    "gpu": DeviceFigures(flops_per_second=9.89e14, memory_bytes_per_second=3.35e12),
}
"""Of a device of speed 1, by platform; for platforms that are not here, take those of a GPU."""


def model_graph(
    config: ModelConfig,
    dtype: jnp.dtype,
    granule_layers: int | None,
    buckets: Sequence[int],
    *,
    name: str | None = None,
    device: DeviceFigures | None = None,
) -> GranuleGraph:
    """The costs of a model's pieces.

    Args:
        config: The model.
        dtype: Type of its weights and KV pages.
        granule_layers: Layers of a granule, as in `fjx.models.granules.cut`.
        buckets: Rows of a step, growing.
        name: What messages and pictures call the model; by default its family.
        device: The device of speed 1; by default that of this machine's platform.

    Returns:
        The graph. Bytes are exact for tensor degree 1; matrices that are packed (see
        `fjx.kernels.matmul`) may be padded more where they are split.
    """
    model = Model(config, granule_layers)
    platform = jax.default_backend()
    graph = analytic_graph(
        _sizes(config, model, dtype, name or config.family),
        [len(layers) for layers in model.granules],
        buckets,
        device or DEVICE_FIGURES.get(platform, DEVICE_FIGURES["gpu"]),
    )
    granules = (
        _with_bytes(
            graph.granules[index],
            model.abstract_granule(index, dtype),
            model.granule_shards(index, dtype),
        )
        for index in range(len(model.granules))
    )
    return replace(
        graph,
        embed=_with_bytes(graph.embed, model.abstract_embed(dtype), model.embed_shards(dtype)),
        granules=tuple(granules),
        head=_with_bytes(graph.head, model.abstract_head(dtype), model.head_shards(dtype)),
    )


def _sizes(config: ModelConfig, model: Model, dtype: jnp.dtype, name: str) -> ModelSizes:
    gated = any(tensor.endswith(".gate_up") for tensor in model.granule_tensors(0))
    return ModelSizes(
        model=name,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        mlp_width=config.mlp_width,
        vocab_size=config.vocab_size,
        mlp_matrices=3 if gated else 2,
        parameter_bytes=dtype.itemsize,
        block_parameter_bytes=None if config.quantization is None else 1,
        kv_bytes=dtype.itemsize,
    )


def _with_bytes(piece: PieceCost, params: Params, partitions: Any) -> PieceCost:
    """The piece with the bytes of its arrays, which are more than its tensors where layers differ
    (windows, RoPE tables)."""
    split = jax.tree.map(lambda partition, s: _bytes(s) * (partition != WHOLE), partitions, params)
    of_split = sum(jax.tree.leaves(split))
    every = sum(map(_bytes, jax.tree.leaves(params)))
    return replace(piece, split_parameter_bytes=of_split, whole_parameter_bytes=every - of_split)


def _bytes(struct: jax.ShapeDtypeStruct) -> int:
    size: int = math.prod(struct.shape) * struct.dtype.itemsize
    return size
