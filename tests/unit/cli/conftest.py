"""What tests of several commands begin with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fjx.sharding.analytic import DeviceFigures, ModelSizes, analytic_graph
from fjx.sharding.profile import graph_to_json


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A profile of a model of eight granules, one layer each."""
    sizes = ModelSizes(
        model="toy",
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        mlp_width=128,
        vocab_size=96,
    )
    figures = DeviceFigures(flops_per_second=1e9, memory_bytes_per_second=1e9)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(graph_to_json(analytic_graph(sizes, [1] * 8, [16], figures))))
    return path
