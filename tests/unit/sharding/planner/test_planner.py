"""From mesh file, machine and model to a deployment, or to an error that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fjx.errors import MemoryFitError, MeshError
from fjx.sharding.costs.figures import Workload
from fjx.sharding.plan.plan import Deployment, Device, Plan
from fjx.sharding.planner.assign import assign_devices, places_of
from fjx.sharding.planner.mesh_file import READY_MADE, MeshFile, load_mesh, parse_mesh
from fjx.sharding.planner.planner import even_mesh, plan_auto, plan_mesh
from fjx.sharding.topology.topology import DeviceState, HostCopy, Link, Topology
from tests.unit.sharding.toy import GRAPH

WORKLOAD = Workload(rows=8, kv_tokens=64)
PARAMETERS = sum(piece.parameter_bytes() for _, piece in GRAPH.pieces())


def machine(
    number: int = 8,
    platform: str = "gpu",
    hosts: tuple[str, ...] = ("localhost",),
    free: int = 1 << 30,
) -> Topology:
    devices = [
        DeviceState(Device(host, platform, i), free) for host in hosts for i in range(number)
    ]
    return Topology(tuple(devices), within=Link(1e9), between=Link(1e8))


def used(deployment: Deployment) -> list[list[str]]:
    return [[str(device) for device in plan.devices] for plan in deployment.replicas]


def plan(text: str, topology: Topology | None = None) -> Deployment:
    mesh = parse_mesh(text, "mesh file x.toml")
    return plan_mesh(mesh, topology or machine(), GRAPH, WORKLOAD)


@pytest.mark.parametrize("name", READY_MADE)
def test_a_ready_made_mesh_plans_on_the_devices_that_it_needs_and_not_on_fewer(name: str) -> None:
    mesh = load_mesh(name)
    needed = mesh.devices_needed("gpu")
    deployment = plan_mesh(mesh, machine(needed), GRAPH, WORKLOAD)
    assert len(deployment.devices) == needed
    if needed > 1:
        with pytest.raises(MeshError, match=f"^mesh {name}, line [0-9]+: stage .* needs"):
            plan_mesh(mesh, machine(needed - 1), GRAPH, WORKLOAD)


def test_too_few_devices_name_line_numbers_and_mend() -> None:
    text = "[[stage]]\ndevices = 1\n\n\n\n\n[[stage]]\ntensor = 2\n"
    with pytest.raises(MeshError) as error:
        plan(text, machine(2))
    assert str(error.value) == (
        "mesh file x.toml, line 7: stage 2 needs 2 devices of platform gpu, this machine has 2, "
        "of which 1 is free; use a mesh of fewer devices, such as --mesh single"
    )
    with pytest.raises(MeshError, match=r"or set jax_num_cpu_devices to 3$"):
        plan(text, machine(2, "cpu"))
    with pytest.raises(MeshError, match="needs 1 device of platform tpu, this machine has 0; "):
        plan('[[stage]]\nplatform = "tpu"')


def test_unlisted_devices_are_the_next_free_ones() -> None:
    deployment = plan("replicas = 2\n[[stage]]\ndevices = [[1], [0]]\n[[stage]]\ntensor = 2")
    assert used(deployment) == [
        ["localhost/gpu:1", "localhost/gpu:2", "localhost/gpu:3"],
        ["localhost/gpu:0", "localhost/gpu:4", "localhost/gpu:5"],
    ]


def test_indices_count_on_the_host_or_over_all_hosts() -> None:
    cluster = machine(2, hosts=("a", "b"))
    text = '[[stage]]\nhost = "b"\ndevices = [1]\n[[stage]]\ndevices = [1, 2]'
    assert used(plan(text, cluster)) == [["b/gpu:1", "a/gpu:1", "b/gpu:0"]]
    with pytest.raises(
        MeshError,
        match=r"line 1: stage 1 uses device 2 of platform gpu on host b, this machine has 2 \(0 to "
        r"1\); use",
    ):
        plan('[[stage]]\nhost = "b"\ndevices = [2]', cluster)


def test_stages_share_a_device_and_its_memory_only_with_leave() -> None:
    text = "[[stage]]\ndevices = [0]\n[[stage]]\ndevices = [0]\n"
    with pytest.raises(
        MeshError, match="line 3: stage 2 uses localhost/gpu:0, which stage 1 has; list other"
    ):
        plan(text)
    mesh = parse_mesh(f"shared_devices = true\n{text}")
    (places,) = assign_devices(mesh, machine(1, free=1000))
    assert [place.free_bytes for place in places] == [500, 500]
    assert plan_mesh(mesh, machine(1), GRAPH, WORKLOAD).replicas[0].granularity == 2


def test_links_come_from_the_file_or_else_from_the_machine() -> None:
    text = "[[stage]]\n[[stage]]\n[[stage]]\nlink.bandwidth = 5.0"
    cluster = machine(1, hosts=("a", "b", "c"))
    (places,) = assign_devices(parse_mesh(text), cluster)
    assert [place.link for place in places] == [Link(), Link(1e8), Link(5.0)]
    (plan_,) = plan_mesh(parse_mesh(text), cluster, GRAPH, WORKLOAD).replicas
    assert [place.link for place in places_of(plan_, cluster)] == [Link(), Link(1e8), Link(1e8)]


def test_layers_cut_the_model_where_they_say() -> None:
    (cut,) = plan("[[stage]]\nlayers = 4\n[[stage]]\nlayers = 12").replicas
    assert [stage.granules for stage in cut.stages] == [range(2), range(2, 8)]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((3, 13), r"line 1: stage 1 ends at layer 3, within a granule; toy can be cut at layers 2, "
         r"4, 6, 8, 10, 12 and 14\. Use layers = 2 or 4 here"),
        ((1, 15), "line 1: stage 1 ends at layer 1, .* Use layers = 2 here"),
        ((4, 10), "line 3: the stages have 14 layers, toy has 16; make their sum equal"),
        ((20, 4), "line 3: the stages have 24 layers, toy has 16"),
    ],
)  # fmt: skip
def test_layers_that_do_not_suit_the_model_are_refused(
    layers: tuple[int, int], message: str
) -> None:
    with pytest.raises(MeshError, match=message):
        plan("".join(f"[[stage]]\nlayers = {number}\n" for number in layers))


def test_a_tensor_degree_that_does_not_suit_the_model_names_the_line() -> None:
    with pytest.raises(
        MeshError,
        match=r"line 2: stage 2: tensor degree 4 does not divide 2 KV heads; use 1 or 2$",
    ):
        plan("[[stage]]\n[[stage]]\ntensor = 4")


def test_a_model_that_does_not_fit_names_the_file_and_the_numbers() -> None:
    with pytest.raises(MemoryFitError, match=r"^mesh file x\.toml: toy does not fit: it needs "):
        plan("[[stage]]", machine(free=PARAMETERS))
    with pytest.raises(MemoryFitError, match=r"^mesh file x\.toml: stage 2 needs .* are free; "):
        plan("[[stage]]\nlayers = 2\n[[stage]]\nlayers = 14", machine(free=PARAMETERS // 2))


def test_every_replica_is_planned_from_the_plan_that_it_has() -> None:
    uneven = plan("replicas = 2\nmicrobatches = 2\n[[stage]]\nlayers = 6\n[[stage]]\nlayers = 10\n")
    mesh = even_mesh(2, replicas=2)
    assert plan_mesh(mesh, machine(), GRAPH, WORKLOAD) != uneven
    again = plan_mesh(mesh, machine(), GRAPH, WORKLOAD, current=uneven, tolerance=1.0)
    assert again == uneven


def test_auto_takes_the_fewest_stages_that_hold_the_model() -> None:
    def stages(free: int) -> int:
        return plan_auto(machine(free=free), GRAPH, WORKLOAD).replicas[0].granularity

    assert stages(1 << 30) == 1
    assert stages(PARAMETERS * 2 // 3) == 2
    assert stages(PARAMETERS // 3) > 3
    with pytest.raises(MemoryFitError, match="a mesh of 8 stages: toy does not fit"):
        stages(1000)


def test_a_plan_of_devices_that_are_not_here_is_refused() -> None:
    (elsewhere,) = plan("[[stage]]", machine(1, hosts=("a",))).replicas
    with pytest.raises(MeshError, match="the plan uses a/gpu:0, and this machine has localhost/gp"):
        places_of(elsewhere, machine(2))


def test_a_mesh_of_no_stages_is_refused() -> None:
    with pytest.raises(MeshError, match="stages must be at least 1, got 0"):
        even_mesh(0)
    assert isinstance(even_mesh(2, tensor=2), MeshFile)


def racks(**free: int) -> Topology:
    """Four hosts with a device each, two to a rack, and a slow link between the racks."""
    states = [DeviceState(Device(host, "gpu", 0), free.get(host, 1 << 30)) for host in "abcd"]
    return Topology(
        tuple(states),
        between=Link(1e6, 1e-3),
        within_rack=Link(1e9),
        racks=(("a", "r1"), ("b", "r2"), ("c", "r2"), ("d", "r1")),
    )


def hosts(deployment: Deployment) -> list[list[str]]:
    return [[device.host for device in plan.devices] for plan in deployment.replicas]


def fragments(
    stages: int, topology: Topology, current: Deployment | None = None, replicas: int = 1
) -> Deployment:
    mesh = even_mesh(stages, replicas=replicas)
    return plan_mesh(mesh, topology, GRAPH, WORKLOAD, current=current, fragments=True)


def test_stages_get_fragments_that_are_near_each_other_and_have_room() -> None:
    assert hosts(plan_mesh(even_mesh(2), racks(), GRAPH, WORKLOAD)) == [["a", "b"]]
    assert sorted(hosts(fragments(2, racks(a=1000)))[0]) == ["b", "c"]
    assert sorted(hosts(fragments(2, racks(c=1000)))[0]) == ["a", "d"]
    assert hosts(plan_auto(racks(a=1000, b=1000, d=1000), GRAPH, WORKLOAD, fragments=True)) == [
        ["c"]
    ]


def test_replicas_get_devices_of_their_own() -> None:
    pairs = [sorted(pair) for pair in hosts(fragments(2, racks(), replicas=2))]
    assert sorted(pairs) == [["a", "d"], ["b", "c"]]
    with pytest.raises(MeshError, match="stage 1 of replica 3 needs 1 device of platform gpu"):
        fragments(2, racks(), replicas=3)


@pytest.mark.parametrize("serving", ["a", "b", "c", "d"])
def test_of_equal_fragments_those_that_hold_the_granules_stay(serving: str) -> None:
    (stage,) = fragments(1, racks()).replicas[0].stages
    mesh = replace(stage.mesh, devices=(Device(serving, "gpu", 0),))
    current = Deployment((Plan((replace(stage, mesh=mesh),)),))
    assert serving in hosts(fragments(2, racks(), current))[0]
    copy = HostCopy(host=serving, model=GRAPH.model)
    assert serving in hosts(fragments(1, replace(racks(), copies=(copy,))))[0]


def test_devices_that_a_mesh_names_are_taken_as_they_are() -> None:
    text = '[[stage]]\nhost = "a"\n[[stage]]\nhost = "b"\n'
    mesh = parse_mesh(text, "mesh file x.toml")
    named = plan_mesh(mesh, racks(), GRAPH, WORKLOAD, fragments=True)
    assert hosts(named) == [["a", "b"]]


def test_a_model_that_fits_on_no_fragments_is_refused_with_what_is_free() -> None:
    with pytest.raises(MemoryFitError, match="a mesh of 2 stages: toy does not fit on 4 devices"):
        fragments(2, racks(a=1000, b=1000, c=1000))
