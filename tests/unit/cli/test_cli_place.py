from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fjx.cli.main import main
from fjx.sharding.plan.plan_json import deployment_from_json

Place = Callable[..., str]

# With 256 tokens of KV memory the toy model needs 0.85 MiB, its halves 0.43 MiB each.
CLUSTER = """\
[[node]]
name = "node-a"
rack = "rack-1"
devices = 2
free_memory = ["0.6 MiB", "0.7 MiB"]

[[node]]
name = "node-b"
rack = "rack-1"
devices = 4
free_memory = "0.45 MiB"

[[node]]
name = "node-c"
rack = "rack-2"
devices = 1
free_memory = "2 MiB"

[links]
within = { bandwidth = 1e9, latency = 1e-6 }
within_rack = { bandwidth = 1e8, latency = 1e-5 }
between = { bandwidth = 1e7, latency = 1e-4 }

[[copy]]
node = "node-c"
model = "toy"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(CLUSTER)
    return path


@pytest.fixture
def place(profile: Path, cluster: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    """Runs ``fjx place`` for the toy model on the cluster and returns what it prints."""

    def run(*words: str) -> str:
        options = ["--profile", str(profile), "--cluster", str(cluster), "--kv-tokens", "256"]
        assert main(["place", *options, *words]) == 0
        return capsys.readouterr().out

    return run


def places(table: str) -> list[tuple[str, str]]:
    """Node and devices of each stage."""
    lines = (line.split() for line in table.splitlines())
    return [
        (words[1], words[2])
        for words in lines
        if words and words[0].isdecimal() and "gpu:" in words[2]
    ]


def nodes(table: str) -> list[str]:
    return [node for node, _ in places(table)]


def test_the_table_has_a_line_for_each_stage(place: Place) -> None:
    title, headings, *stages, time, memory = place("--stages", "2").splitlines()
    assert title == "toy, 2 stages"
    assert headings.split()[:6] == ["stage", "node", "devices", "granules", "needs", "left"]
    assert [line.split()[:3] for line in stages] == [
        ["1", "node-a", "gpu:0"],
        ["2", "node-a", "gpu:1"],
    ]
    assert "same node, " in stages[0]
    assert time.startswith("slowest stage ")
    assert time.endswith("no placement is better")
    assert " to load cold; stranded memory " in memory


def test_stages_of_one_model_take_different_devices(place: Place) -> None:
    assert len(set(places(place("--stages", "4")))) == 4
    assert nodes(place("--stages", "2", "--stages-per-device", "2")) == ["node-c"] * 2


def test_the_number_of_stages_is_chosen(place: Place) -> None:
    assert place().startswith("toy, 1 stage\n")
    assert nodes(place("--stages", "1", "2")) == ["node-c"]


def test_a_node_that_holds_the_parameters_loads_nothing_cold(place: Place) -> None:
    assert "\n0 B to load cold" in place("--stages", "1")
    assert "\n0 B to load cold" not in place("--stages", "2")


def test_a_mesh_gives_stages_and_replicas(place: Place, tmp_path: Path) -> None:
    mesh = tmp_path / "mesh.toml"
    mesh.write_text("replicas = 2\n[[stage]]\nlayers = 3\n[[stage]]\nlayers = 5\n")
    first, second = place("--mesh", str(mesh)).split("\n\n")
    assert first.startswith("1 of 2: toy, 2 stages\n")
    assert "embed, 0-2" in first
    assert len({*places(first), *places(second)}) == 4
    assert "3-7, head" in second


def test_json_is_a_plan_that_can_be_read_back(place: Place) -> None:
    deployment = deployment_from_json(json.loads(place("--stages", "2", "--json")))
    assert [str(d) for d in deployment.devices] == ["node-a/gpu:0", "node-a/gpu:1"]


def test_pictures_are_written(place: Place, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    svg, png = tmp_path / "place.svg", tmp_path / "place.png"
    place("--stages", "2", "--draw", str(svg), "--draw", str(png))
    texts = [text.text for text in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"node-a", "node-b"} <= set(texts)
    assert {"stage 1", "stage 2"} <= set(texts)
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_a_cluster_file_the_machine_is_meant(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--devices", "4", "--device-memory", "2", "--stages", "2", "--kv-tokens", "256"]
    assert main(["place", "--profile", str(profile), *words]) == 0
    stages = capsys.readouterr().out.splitlines()[2:4]
    assert [line.split()[:3] for line in stages] == [
        ["1", "localhost", "cpu:0"],
        ["2", "localhost", "cpu:1"],
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--stages", "9"], "toy has 8 granules and cannot have 9 stages"),
        (["--stages", "0"], "--stages: expected a whole number of at least 1, got '0'"),
        (["--stages", "2", "--mesh", "single"], "--mesh says all of the stages"),
        (["--mesh", "pipelin-2"], "no mesh 'pipelin-2'.*did you mean pipeline-2"),
        (["--tensor", "3"], "tensor degree 3 does not divide 4 query heads"),
        (["--kv-tokens", "1000000", "--stages", "2", "4"], "toy does not fit on 7 devices"),
        (["--scorer", "best"], "--scorer: expected one of fragment, flexpipe; got 'best'"),
        (["--tolerance", "-1"], "--tolerance: expected a number of at least 0, or inf, got '-1'"),
        (["--hop-tolerance", "x"], "--hop-tolerance: expected a number of at least 0, or inf"),
        (["--stages-per-device", "2", "--tensor", "2"], "cannot be split over several"),
        (["--draw", "place.jpg"], "draw must end in .svg or .png, got place.jpg"),
        (["--draw", "/nowhere/place.svg"], "draw: cannot write /nowhere/place.svg"),
        (["--cluster", "/nowhere/c.toml"], "cannot read cluster file /nowhere/c.toml"),
        (["--devices", "2"], "leave out --devices"),
        (["--model", "other"], "is of toy, not of other"),
        (["--stags", "2"], "unknown argument --stags; .* --stages"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    profile: Path,
    cluster: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    options = ["--profile", str(profile), "--cluster", str(cluster), "--kv-tokens", "256"]
    assert main(["place", *options, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(line)


def test_an_error_in_the_cluster_file_names_the_line(
    profile: Path, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.write_text(CLUSTER.replace('node = "node-c"', 'node = "node-d"'))
    assert main(["place", "--profile", str(profile), "--cluster", str(cluster)]) == 2
    assert f"cluster file {cluster}, line 25: node must be one of" in capsys.readouterr().err
