"""Mesh files are read, and what is wrong in one is said with line, expectation and mend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fjx.errors import MeshError
from fjx.sharding.planner.mesh_file import READY_MADE, MeshFile, StageSpec, load_mesh, parse_mesh
from fjx.sharding.topology.cluster_file import parse_cluster, read_cluster
from fjx.sharding.topology.topology import Link

FULL = """\
microbatches = 4
replicas = 2
platform = "gpu"
link = { bandwidth = 25e9, latency = 5e-6 }

[[stage]]
devices = [[0, 1], [4, 5]]
layers = 20

[[stage]]
tensor = 2
host = "node-b"
layers = 12
link = { bandwidth = 1e9 }
"""


def test_every_key_is_read() -> None:
    assert parse_mesh(FULL) == MeshFile(
        stages=(
            StageSpec(
                tensor=2,
                indices=((0, 1), (4, 5)),
                platform="gpu",
                layers=20,
                link=Link(25e9, 5e-6),
            ),
            StageSpec(tensor=2, platform="gpu", host="node-b", layers=12, link=Link(1e9)),
        ),
        replicas=2,
        microbatches=4,
    )


@pytest.mark.parametrize(
    ("name", "stages", "tensor", "replicas", "devices"),
    [
        ("single", 1, 1, 1, 1),
        ("pipeline-2", 2, 1, 1, 2),
        ("pipeline-4", 4, 1, 1, 4),
        ("pipeline-8", 8, 1, 1, 8),
        ("tensor-2", 1, 2, 1, 2),
        ("pipeline-2-tensor-2", 2, 2, 1, 4),
        ("replicas-2", 1, 1, 2, 2),
    ],
)
def test_a_ready_made_mesh_is_what_its_name_says(
    name: str, stages: int, tensor: int, replicas: int, devices: int
) -> None:
    mesh = load_mesh(name)
    assert [stage.tensor for stage in mesh.stages] == [tensor] * stages
    assert (mesh.replicas, mesh.microbatches) == (replicas, stages)
    assert mesh.devices_needed("cpu") == devices


def test_every_ready_made_mesh_is_in_the_list_of_names() -> None:
    folder = Path(__file__).parents[4] / "sharding" / "configs"
    assert {file.stem for file in folder.iterdir()} == set(READY_MADE)


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "my mesh.toml").write_text("\ufeff[[stage]]\ntensor = 3\n", encoding="utf-8")
    assert load_mesh(str(tmp_path / "my mesh.toml")).stages[0].tensor == 3


def test_every_example_in_the_documentation_is_a_valid_file() -> None:
    text = (Path(__file__).parents[4] / "docs" / "mesh-files.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 5
    for example in examples:
        if "[[node]]" in example:
            assert len(parse_cluster(example).devices) == 6
        else:
            assert len(parse_mesh(example).stages) >= 2


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(MeshError) as error:
        load_mesh("pipelin-4")
    assert all(name in str(error.value) for name in READY_MADE)
    assert str(error.value).endswith("did you mean pipeline-4?")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(MeshError, match=r"cannot read mesh file none\.toml: No such file"):
        load_mesh("none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the mesh file has no 'stage'; add it"),
        ("stage = []", "line 1: a mesh needs at least one stage; add"),
        (
            "[stage]\ntensor = 2",
            "line 1: stage must be a list of tables, written \\[\\[stage\\]\\]",
        ),
        ("[[stage]]\n\ntensr = 2", "line 3: unknown key 'tensr' .*; did you mean 'tensor'"),
        ("stages = 2", "line 1: unknown key 'stages' in the mesh file; did you mean 'stage'"),
        ("[[stage]]\ntensor = 0", "line 2: tensor must be a whole number of at least 1, got 0"),
        ("[[stage]]\ntensor = true", "line 2: tensor must be a whole number .*, got True"),
        ("[[stage]]\ndevices = 2\ntensor = 4", "line 3: stage 1 has tensor = 4 and 2 devices"),
        ("[[stage]]\ndevices = []", "line 2: devices must be a number of devices, a list"),
        ("[[stage]]\ndevices = [0, 0]", "line 2: stage 1 lists a device twice"),
        ("[[stage]]\ndevices = [-1]", "line 2: devices must be"),
        (
            "replicas = 2\n[[stage]]\ndevices = [0]",
            "line 3: stage 1 lists devices for 1 replica, the mesh has 2; list one group for each",
        ),
        (
            "replicas = 2\n[[stage]]\ndevices = [[0], [1, 2]]",
            "line 3: stage 1 must have as many devices in every replica",
        ),
        (
            "[[stage]]\nlayers = 3\n\n[[stage]]\n",
            "line 4: stage 2 has no layers, but stage 1 has; give layers for every stage",
        ),
        ('microbatches = "many"\n[[stage]]', 'line 1: microbatches must be "auto" or a whole'),
        ("[[stage]]\nlink = 3", "line 2: \\[link\\] must be a table"),
        ("[[stage]]\nlink.latency = 3", "line 2: \\[link\\] has no 'bandwidth'; add it"),
        ("[[stage]]\n[stage.link]\nbandwidth = 0", "line 3: bandwidth must be a number above 0"),
        ("shared_devices = 1\n[[stage]]", "line 1: shared_devices must be true or false, got 1"),
    ],
)
def test_an_error_names_the_line_and_the_mend(text: str, message: str) -> None:
    with pytest.raises(MeshError, match=message) as error:
        parse_mesh(text, "mesh file tp4.toml")
    assert str(error.value).startswith("mesh file tp4.toml")


@pytest.mark.parametrize(
    ("text", "cpus", "gpus"),
    [
        ("[[stage]]\ntensor = 2\n[[stage]]\ntensor = 2", 4, 0),
        ("replicas = 3\n[[stage]]\ntensor = 2", 6, 0),
        ("[[stage]]\ndevices = [5]", 6, 0),
        ("[[stage]]\ndevices = [2]\n[[stage]]\ndevices = 4", 5, 0),
        ("shared_devices = true\n[[stage]]\ndevices = [0]\n[[stage]]\ndevices = [0]", 1, 0),
        ('[[stage]]\nplatform = "gpu"\ndevices = 2\n[[stage]]\ndevices = 3', 3, 2),
    ],
)
def test_the_number_of_devices_that_a_mesh_needs(text: str, cpus: int, gpus: int) -> None:
    mesh = parse_mesh(text)
    assert mesh.devices_needed("cpu") == cpus
    assert mesh.devices_needed("gpu", default=False) == gpus


@pytest.mark.parametrize(
    "name",
    ["a" * 5000, "a" * 5000 + ".toml", "a/" * 2500 + "b", "a/" * 200 + "b", "a\0.toml", "a\0b"],
)
@pytest.mark.parametrize("load", [load_mesh, lambda name: read_cluster(Path(name))])
def test_name_that_no_file_can_have_is_refused_in_few_words(load, name):
    with pytest.raises(MeshError) as refused:
        load(name)
    assert len(str(refused.value)) < 500


def test_long_key_is_refused_in_few_words():
    with pytest.raises(MeshError, match="unknown key 'aaa") as refused:
        parse_mesh(f"{'a' * 100_000} = 1")
    assert len(str(refused.value)) < 500
