"""Costs come from a profile, which is checked, or from a model's sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fjx.errors import MeshError
from fjx.sharding.costs.analytic import DeviceFigures, ModelSizes, analytic_graph
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.costs.profile import graph_from_json, graph_to_json, read_profile

SMOLLM2 = ModelSizes(
    model="smollm2-135m",
    hidden_size=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_width=1536,
    vocab_size=49152,
)
DEVICE = DeviceFigures(flops_per_second=1e12, memory_bytes_per_second=1e11)


def smollm2(**changes: Any) -> GranuleGraph:
    return analytic_graph(SMOLLM2, [5] * 6, [8, 64, 512], DEVICE, **changes)


def parameters(graph: GranuleGraph) -> int:
    return sum(piece.parameter_bytes() for _, piece in graph.pieces())


def test_the_analytic_model_counts_the_parameters_of_smollm2() -> None:
    # The model card's 134,515,008 parameters, of which the tied table counts a second time in the
    # head, and the norms are float32.
    norms = (2 * 30 + 1) * 576
    assert parameters(smollm2()) == 2 * (134_515_008 - norms + 49152 * 576) + 4 * norms


def test_the_analytic_model_is_bound_by_memory_for_few_rows_and_arithmetic_for_many() -> None:
    granule = smollm2(context=1).granules[0]
    few, _, many = (granule.seconds_at(bucket) for bucket in range(3))
    assert few == pytest.approx(granule.split_parameter_bytes / 1e11, rel=0.01)
    assert many == pytest.approx(512 * granule.split_parameter_bytes / 1e12, rel=0.01)


def test_the_tensor_degree_divides_time_and_memory_and_costs_sums() -> None:
    slow_sums = DeviceFigures(
        flops_per_second=1e12, memory_bytes_per_second=1e11, reduce_seconds=1.0
    )
    free = smollm2(degrees=(1, 3)).granules[0]
    costly = analytic_graph(SMOLLM2, [5] * 6, [8], slow_sums, degrees=(1, 3)).granules[0]
    assert free.seconds_at(0, 3) == pytest.approx(free.seconds_at(0) / 3)
    assert costly.seconds_at(0, 3) == pytest.approx(free.seconds_at(0, 3) + 10, rel=1e-6)
    assert free.parameter_bytes(3) == free.whole_parameter_bytes + free.split_parameter_bytes // 3
    assert free.kv_bytes(100, 3) == free.kv_bytes(100) // 3 == 100 * 5 * 2 * 64 * 2


def test_a_degree_that_was_not_measured_is_guessed_from_the_next_smaller_one() -> None:
    granule = smollm2(degrees=(1, 3)).granules[0]
    assert granule.seconds_at(0, 9) == pytest.approx(granule.seconds_at(0, 3) / 3)


def test_rows_find_the_bucket_that_holds_them() -> None:
    graph = smollm2()
    assert [graph.bucket_of(rows) for rows in (1, 8, 9, 512, 5000)] == [0, 0, 1, 2, 2]


def test_a_profile_survives_json(tmp_path: Path) -> None:
    graph = smollm2(degrees=(1, 3))
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(graph_to_json(graph, {"device": "cpu"})))
    assert read_profile(path) == graph


def broken(*path: str | int, value: Any = None) -> dict[str, Any]:
    """A profile with one value replaced, or left out where it is None."""
    values = json.loads(json.dumps(graph_to_json(smollm2())))
    parent = values
    for key in path[:-1]:
        parent = parent[key]
    if value is None:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return values  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (broken("format", value="fjx-profile-0"), 'format: expected "fjx-profile-1", got'),
        (broken("granules", 3, "layers"), r"granules\[3\]: .* has no 'layers'; add it"),
        (broken("granules", 0, "layers", value=1.5), r"granules\[0\]\.layers: .* got 1.5"),
        (broken("granules", value=[]), "at least one granule"),
        (broken("head", "seconds", "1", value=[1.0]), "head: seconds .* each of 3 buckets, got 1"),
        (broken("head", "seconds", "1", value=[1.0, -1, 2]), "head.seconds.1: .* at least 0"),
        (broken("head", "seconds", "1", value=[1.0, float("nan"), 2]), "head.seconds.1: "),
        (broken("head", "seconds", "two", value=[1.0, 1, 1]), "a tensor degree such as 1"),
        (broken("embed", "seconds", value={}), "embed: seconds are missing"),
        (broken("buckets", value=[8, 8, 64]), "growing sizes"),
        (broken("head", "parameter_bytes", value=3), "unknown key 'parameter_bytes'"),
    ],
)
def test_a_broken_profile_is_refused_with_the_place(values: Any, message: str) -> None:
    with pytest.raises(MeshError, match=f"^my profile.*{message}"):
        graph_from_json(values, "my profile")


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(MeshError, match=r"p\.json is not JSON: "):
        read_profile(tmp_path / "p.json")
    with pytest.raises(MeshError, match=r"cannot read profile .*No such file"):
        read_profile(tmp_path / "none.json")
