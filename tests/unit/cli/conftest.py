"""What tests of several commands begin with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fjx.sharding.costs.analytic import analytic_graph
from fjx.sharding.costs.profile import graph_to_json
from tests.unit.sharding.toy import FIGURES, SIZES


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A profile of a model of eight granules, one layer each."""
    graph = analytic_graph(replace(SIZES, vocab_size=96), [1] * 8, [16], FIGURES)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(graph_to_json(graph)))
    return path
