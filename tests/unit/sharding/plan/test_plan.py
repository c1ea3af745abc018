"""A plan is a value that cannot be wrong in itself, and survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.errors import MeshError
from fjx.sharding.plan.plan import Deployment, Device, Mesh, Plan, Stage
from fjx.sharding.plan.plan_json import deployment_from_json, deployment_to_json, plan_to_json


def cpu(index: int, host: str = "localhost") -> Device:
    return Device(host, "cpu", index)


def on(*indices: int) -> Mesh:
    return Mesh(tuple(map(cpu, indices)), (("tensor", len(indices)),))


def two_stages(**changes: Any) -> Plan:
    return Plan((Stage(range(3), on(0)), Stage(range(3, 5), on(1, 2))), **changes)


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    granules = draw(st.integers(1, 12))
    hosts = st.sampled_from(["localhost", "node-a", "10.0.0.7"])
    next_index = iter(range(1000))
    replicas = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = draw(st.sets(st.integers(1, granules), max_size=5)) | {granules}
        stages, start = [], 0
        for stop in sorted(cuts):
            tensor = draw(st.integers(1, 4))
            devices = tuple(cpu(next(next_index), draw(hosts)) for _ in range(tensor))
            stages.append(Stage(range(start, stop), Mesh(devices, (("tensor", tensor),))))
            start = stop
        replicas.append(Plan(tuple(stages), draw(st.integers(1, 9)), draw(st.booleans())))
    return Deployment(tuple(replicas))


@given(deployments())
def test_a_deployment_survives_json(deployment: Deployment) -> None:
    text = json.dumps(deployment_to_json(deployment))
    again = deployment_from_json(json.loads(text))
    assert again == deployment
    assert hash(again) == hash(deployment)


def test_a_single_plan_is_a_deployment_and_defaults_may_be_left_out() -> None:
    plan = two_stages()
    values = plan_to_json(plan)
    del values["microbatches"], values["shared_devices"]
    for stage in values["stages"]:
        del stage["axes"]
    assert deployment_from_json(values) == Deployment((plan,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": 3}, "^plan, stages: stages must be a list of tables"),
        ({"stages": [3]}, r"^plan, stages\[0\]: .* must be a table"),
        ({"microbatches": 0}, "^plan, microbatches: .* at least 1, got 0"),
        ({"speed": 1}, "^plan, speed: unknown key 'speed'"),
        ({"stages": [{"devices": ["localhost/cpu:0"]}]}, "has no 'granules'; add it"),
        (
            {"stages": [{"granules": [0], "devices": ["localhost/cpu:0"]}]},
            r"^plan, stages\[0\]\.granules: granules must be \[first, after last\]",
        ),
        (
            {"stages": [{"granules": [0, 1], "devices": ["cpu0"]}]},
            "'cpu0' is not a device; expected host/platform:index",
        ),
        (
            {"stages": [{"granules": [0, 1], "devices": ["localhost/cpu:0"], "axes": {"x": 1}}]},
            "a mesh has no axis 'x'; expected tensor",
        ),
        (
            {"stages": [{"granules": [1, 2], "devices": ["localhost/cpu:0"]}]},
            "^plan: stage 1 begins with granule 1, expected granule 0",
        ),
    ],
)
def test_json_that_is_no_plan_is_refused_with_its_place(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(MeshError, match=message):
        deployment_from_json(plan_to_json(two_stages()) | change)


def test_stages_hold_all_granules_once_and_in_order() -> None:
    for second in (range(2, 5), range(4, 5)):
        with pytest.raises(MeshError, match=r"stage 2 begins with granule ., expected granule 3"):
            Plan((Stage(range(3), on(0)), Stage(second, on(1))))
    with pytest.raises(MeshError, match="at least one granule"):
        Stage(range(3, 3), on(0))
    with pytest.raises(MeshError, match="at least one stage"):
        Plan(())


def test_stages_share_devices_only_with_leave() -> None:
    stages = (Stage(range(3), on(0)), Stage(range(3, 5), on(0)))
    with pytest.raises(MeshError, match=r"stages 1 and 2 both use localhost/cpu:0; give"):
        Plan(stages)
    assert Plan(stages, shared_devices=True).devices == (cpu(0),)


def test_replicas_have_devices_of_their_own_and_one_model() -> None:
    one = Plan((Stage(range(5), on(0)),))
    with pytest.raises(MeshError, match="2 replicas use localhost/cpu:0"):
        Deployment((one, two_stages()))
    with pytest.raises(MeshError, match="have 4 and 5 granules"):
        Deployment((one, Plan((Stage(range(4), on(3)),))))
    assert Deployment((two_stages(), Plan((Stage(range(5), on(3)),)))).devices == tuple(
        map(cpu, range(4))
    )


def test_a_mesh_has_as_many_devices_as_its_axes_say() -> None:
    with pytest.raises(MeshError, match="tensor 4 needs 4 devices, got 2"):
        Mesh((cpu(0), cpu(1)), (("tensor", 4),))
    with pytest.raises(MeshError, match="the device localhost/cpu:0 2 times"):
        on(0, 0)


def test_the_ends_of_the_pipeline_hold_embed_and_head() -> None:
    pieces = dict(two_stages().pieces())
    assert list(pieces) == ["embed", *(f"granule {i}" for i in range(5)), "head"]
    assert pieces["embed"] == pieces["granule 2"] == on(0)
    assert pieces["head"] == pieces["granule 3"] == on(1, 2)


def test_a_model_that_the_plan_does_not_suit_is_refused_with_the_degrees_that_do() -> None:
    plan = two_stages()
    plan.check_model(5, {"query heads": 8, "KV heads": 2})
    with pytest.raises(
        MeshError,
        match="stage 2: tensor degree 2 does not divide 9 query heads and 3 KV heads; use 1 or 3",
    ):
        plan.check_model(5, {"query heads": 9, "KV heads": 3, "MLP width": 1536})
    with pytest.raises(MeshError, match="holds 5 granules, the model has 6"):
        plan.check_model(6, {})
