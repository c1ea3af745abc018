"""A model too small to be true, as sizes and as a granule graph."""

from __future__ import annotations

from fjx.sharding.costs.analytic import DeviceFigures, ModelSizes, analytic_graph

SIZES = ModelSizes(
    model="toy",
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=128,
    vocab_size=256,
)
FIGURES = DeviceFigures(flops_per_second=1e9, memory_bytes_per_second=1e9)
GRAPH = analytic_graph(SIZES, [2] * 8, [8], FIGURES)
"""Eight granules of two layers."""
