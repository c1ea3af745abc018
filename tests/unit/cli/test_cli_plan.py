from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import huggingface_hub
import jax
import numpy as np
import pytest

from fjx.cli.main import main
from fjx.kernels.matmul import Quantization
from fjx.models.config import ModelConfig
from fjx.models.loading.orbax import save_checkpoint
from fjx.models.tensors import canonical_tensors, random_tensors
from fjx.sharding.plan.plan import Device
from fjx.sharding.plan.plan_json import deployment_from_json
from fjx.wording import format_bytes
from tests.unit.engine.tiny import HF_CONFIG
from tests.unit.plots.picture_cases import texts_of

Plan = Callable[..., str]


@pytest.fixture
def plan(profile: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Runs ``fjx plan`` for the toy model and returns what it prints."""

    def run(*words: str) -> str:
        assert main(["plan", "--profile", str(profile), *words]) == 0
        return capsys.readouterr().out

    return run


def test_the_table_has_a_line_for_each_stage(plan: Plan) -> None:
    title, _, *stages, summary = plan("--mesh", "pipeline-4").splitlines()
    assert title == "toy, 4 stages"
    assert [line.split()[:2] for line in stages] == [[f"{i + 1}", f"cpu:{i}"] for i in range(4)]
    assert summary.startswith("slowest stage ")


@pytest.mark.parametrize("quantization", [None, "int8", "fp8"])
def test_a_real_model_is_planned_by_its_own_bytes_without_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quantization: Quantization | None
) -> None:
    config = replace(ModelConfig.from_hf(HF_CONFIG), quantization=quantization)
    folder = tmp_path / "model"
    save_checkpoint(folder, config, random_tensors(config, seed=0))
    words = ["--model", str(folder), "--dtype", "float32", "--kv-tokens", "1024"]
    words += [] if quantization is None else ["--quantization", quantization]
    assert main(["plan", *words, "--granule-layers", "1"]) == 0
    title, _, stage, _ = capsys.readouterr().out.splitlines()
    assert title == f"{folder}, 1 stage"
    structs = [spec.struct(np.dtype("float32")) for spec in canonical_tensors(config).values()]
    sizes = (math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(structs))
    parameters = format_bytes(sum(sizes))
    pages = format_bytes(1024 * 4 * 2 * 2 * 16 * 4)  # 4 layers, keys and values of 2 heads of 16
    assert stage.split()[2:10] == [
        "embed,",
        "0-3,",
        "head",
        "0-3",
        *parameters.split(),
        *pages.split(),
    ]


def test_the_weights_of_a_hub_model_are_not_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []

    def download(repo: str, *, allow_patterns: list[str], **options: object) -> str:
        wanted.extend(allow_patterns)
        (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
        (tmp_path / "tokenizer.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert main(["plan", "--model", "owner/name"]) == 0
    assert capsys.readouterr().out.startswith("owner/name, 1 stage\n")
    assert wanted
    assert not any("safetensors" in pattern for pattern in wanted)


def test_pictures_are_written(plan: Plan, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    svg, png = tmp_path / "plan.svg", tmp_path / "plan.png"
    plan("--mesh", "pipeline-2", "--output", str(svg), "--output", str(png))
    texts = [text.text for text in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"toy in 2 stages", "stage 1", "stage 2"} <= set(texts)
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_difference_to_another_mesh(plan: Plan) -> None:
    _, difference = plan("--mesh", "pipeline-2", "--from", "single").split("\n\n")
    heading, columns, *moves, total = difference.splitlines()
    assert heading == "from single to pipeline-2"
    assert columns.split()[:3] == ["move", "from", "to"]
    assert moves[-1].split()[:3] == ["head", "cpu:0", "cpu:1"]
    assert total.startswith(f"{len(moves)} moves, ")


def test_the_way_from_another_mesh_is_drawn(plan: Plan, tmp_path: Path) -> None:
    svg = tmp_path / "plan.svg"
    plan("--mesh", "pipeline-2", "--from", "single", "--output", str(svg))
    texts = texts_of(svg.read_text())
    assert {"From single to pipeline-2", "before", "after", "moves"} <= set(texts)


def test_going_nowhere_moves_nothing(plan: Plan) -> None:
    assert plan("--mesh", "pipeline-2", "--from", "pipeline-2").endswith("nothing moves\n")


def test_json_is_a_plan_that_can_be_read_back(plan: Plan) -> None:
    deployment = deployment_from_json(json.loads(plan("--mesh", "replicas-2", "--json")))
    assert [replica.num_granules for replica in deployment.replicas] == [8, 8]
    assert deployment.devices == (Device("localhost", "cpu", 0), Device("localhost", "cpu", 1))


def test_auto_takes_as_few_stages_as_the_memory_allows(plan: Plan) -> None:
    auto = ("--mesh", "auto", "--devices", "8", "--kv-tokens", "1000")
    roomy, tight = plan(*auto, "--device-memory", "1"), plan(*auto, "--device-memory", "0.0006")
    assert roomy.startswith("toy, 1 stage\n")
    assert tight.startswith("toy, 3 stages\n")


def test_a_cluster_file_takes_the_place_of_the_machine(plan: Plan, tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.toml"
    cluster.write_text('[[node]]\nname = "node-a"\ndevices = 2\nfree_memory = "3 GiB"\n')
    table = plan("--mesh", "pipeline-2", "--cluster", str(cluster))
    assert "node-a/gpu:0" in table
    assert "3 GiB" in table


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--mesh", "pipelin-2"], "no mesh 'pipelin-2'.*did you mean pipeline-2"),
        (["--mesh", "pipeline-4", "--devices", "2"], "this machine has 2"),
        (["--from", "/nowhere/m.toml"], "cannot read mesh file /nowhere/m.toml"),
        (["--device-memory", "1e-5"], "toy does not fit"),
        (["--output", "plan.jpg"], "output must end in .svg or .png, got plan.jpg"),
        (["--output", "/nowhere/plan.svg"], "output: cannot write /nowhere/plan.svg"),
        (["--cluster", "/nowhere/c.toml"], "cannot read cluster file /nowhere/c.toml"),
        (["--cluster", "c.toml", "--devices", "2"], "leave out --devices"),
        (["--model", "other"], "is of toy, not of other"),
        (["--dtype", "float32"], "a profile is of one dtype"),
        (["--quantization", "int8"], "a profile is of one dtype, one quantization"),
        (["--quantization", "int4"], "--quantization: .*'int4'"),
        (["--rows", "0"], "--rows: expected a whole number of at least 1, got '0'"),
        (["--devices", "two"], "--devices: expected a whole number of at least 1, got 'two'"),
        (["--device-memory", "-1"], "--device-memory: expected GiB above 0, got '-1'"),
        (["--device-memory", "inf"], "--device-memory: expected GiB above 0, got 'inf'"),
        (["--profil", "p.json"], "unknown argument --profil; .* --profile"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    profile: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(["plan", "--profile", str(profile), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(line)


def test_a_model_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", str(tmp_path / "absent")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "absent" in line
