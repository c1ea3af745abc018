"""What a user may ask for, and the deployment that it means."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest

from fjx.errors import MemoryFitError, MeshError
from fjx.regranularization.plan_target import Planner
from fjx.sharding.plan.plan import Deployment
from fjx.sharding.plan.plan_json import deployment_to_json
from fjx.sharding.planner.mesh_file import load_mesh
from tests.unit.engine.plan_cases import deep_engine, even, shared

ONE = Deployment((even(1),))


@cache
def planner() -> Planner:
    return deep_engine(num_pages=33).plans.planner


@pytest.mark.parametrize("stages", range(1, 9))
def test_a_number_is_so_many_stages_with_a_device_each(stages: int) -> None:
    (plan,) = planner().plan(stages, ONE).replicas
    assert plan.granularity == stages == len(plan.devices)
    assert plan.num_granules == 8


def test_a_number_keeps_replicas_and_tensor_degree() -> None:
    two = Deployment((even(1, tensor=2), even(1, tensor=2, first_device=2)))
    planned = planner().plan(2, two)
    assert [plan.granularity for plan in planned.replicas] == [2, 2]
    assert {stage.mesh.tensor for plan in planned.replicas for stage in plan.stages} == {2}


def test_auto_is_as_few_stages_as_memory_allows() -> None:
    (plan,) = planner().plan("auto", ONE).replicas
    assert plan.granularity == 1


def test_a_mesh_by_name_by_path_and_as_a_value_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text("microbatches = 3\n[[stage]]\n[[stage]]\n")
    by_path = planner().plan(str(path), ONE)
    assert by_path == planner().plan(load_mesh(str(path)), ONE)
    (plan,) = by_path.replicas
    assert (plan.granularity, plan.microbatches) == (2, 3)
    (single,) = planner().plan("single", ONE).replicas
    assert single.granularity == 1


def test_a_plan_is_taken_as_it_is_whatever_form_it_has() -> None:
    plan = shared((3, (5,)), (5, (0, 1)), microbatches=2)
    deployment = Deployment((plan, even(1, first_device=2)))
    assert planner().plan(plan, ONE) == Deployment((plan,))
    assert planner().plan(deployment, ONE) == deployment
    assert planner().plan(deployment_to_json(deployment), ONE) == deployment


@pytest.mark.parametrize("target", [True, False])
def test_truth_is_no_number_of_stages(target: bool) -> None:
    with pytest.raises(MeshError, match=f"whole number, got {target}"):
        planner().plan(target, ONE)


def test_a_plan_that_does_not_fit_into_memory_is_refused() -> None:
    topology = planner().topology
    devices = tuple(dataclasses.replace(each, free_bytes=500_000) for each in topology.devices)
    tight = dataclasses.replace(planner(), topology=dataclasses.replace(topology, devices=devices))
    assert isinstance(tight, Planner)
    with pytest.raises(MemoryFitError, match=r"stage 1 needs .* are free"):
        tight.plan(even(1), ONE)
    (plan,) = tight.plan(even(8), ONE).replicas
    assert plan == even(8)
    (plan,) = tight.plan("auto", ONE).replicas
    assert plan.granularity > 1


def test_more_stages_than_devices_are_refused() -> None:
    two = Deployment((even(4), even(4, first_device=4)))
    with pytest.raises(MeshError, match="8"):
        planner().plan(5, two)
