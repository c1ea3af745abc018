"""From a target to the file of its draft head, with a model of toy size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fjx.distill import generate, prompts
from fjx.distill.config import DistillConfig
from fjx.distill.distill import distill
from fjx.distill.train import read_log
from fjx.errors import UserError
from fjx.models.loading.draft_head_file import load_draft_head
from tests.unit.distill.echo_llm import EchoLLM
from tests.unit.distill.test_prompts import FUNCTIONS, PASSAGES
from tests.unit.distill.tiny_target import CONFIG, write_target


@pytest.fixture(scope="module", autouse=True)
def echo() -> Iterator[list[EchoLLM]]:
    """What has generated so far."""
    made: list[EchoLLM] = []

    def start(config: DistillConfig) -> EchoLLM:
        made.append(EchoLLM(Path(config.model)))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "SHARD_PROMPTS", 20)
        patch.setattr(generate, "_start", start)
        patch.setattr(prompts, "functions", lambda: FUNCTIONS)
        patch.setattr(prompts, "passages", lambda: PASSAGES)
        yield made


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    folder = tmp_path_factory.mktemp("distill")
    return DistillConfig(
        model=str(write_target(folder / "tiny")),
        dtype="float32",
        output=folder / "head.safetensors",
        tokens=600,
        max_tokens=20,
        max_num_seqs=8,
        vocabulary=128,
        window=96,
        windows=4,
        epochs=12,
        minutes=2,
        draft_positions=3,
        learning_rate=2e-2,
    )


@pytest.fixture(scope="module")
def distilled(config: DistillConfig, echo: list[EchoLLM]) -> DistillConfig:
    groups = distill(config, ("distill", "--model", "tiny"), progress=False)
    (llm,) = echo
    assert not llm.open
    assert groups["greedy"].reached[0] > 0
    return config


def test_training_lowers_the_loss(distilled: DistillConfig) -> None:
    steps = [
        line for line in read_log(distilled.work_folder / "log.jsonl") if line["kind"] == "step"
    ]
    first, last = (np.mean([line["loss"] for line in part]) for part in (steps[:3], steps[-3:]))
    assert last < 0.8 * first


def test_the_file_says_what_it_is_for_and_how_it_was_made(distilled: DistillConfig) -> None:
    head = load_draft_head(distilled.output)
    assert head.config.config == CONFIG
    assert head.config.vocabulary_size == len(head.token_ids) == 128
    training = head.config.training
    assert training["command"] == "fjx distill --model tiny"
    assert training["data"]["output_tokens"] >= 600
    assert len(training["acceptance"]["greedy"]["by_position"]) == 3
    assert training["lens"].keys() == {"2"}
    assert head.maps.keys() == ({2} if training["lens"]["2"]["helps"] else set())


def test_the_work_folder_shows_the_training(distilled: DistillConfig) -> None:
    svg = (distilled.work_folder / "training.svg").read_text()
    assert svg.startswith("<svg")
    assert "position 3" in svg


def test_a_finished_run_is_resumed_without_new_work(distilled: DistillConfig) -> None:
    before = load_draft_head(distilled.output)
    steps = len(read_log(distilled.work_folder / "log.jsonl"))
    distill(dataclasses.replace(distilled, resume=True), progress=False)
    after = load_draft_head(distilled.output)
    for name, values in before.tensors.items():
        np.testing.assert_array_equal(after.tensors[name], values)
    assert len(read_log(distilled.work_folder / "log.jsonl")) <= steps + 1  # a measurement


def test_a_run_without_resume_does_not_touch_an_earlier_one(distilled: DistillConfig) -> None:
    with pytest.raises(UserError, match=r"holds an earlier run; use --resume"):
        distill(distilled, progress=False)


def test_resume_with_other_options_is_refused(distilled: DistillConfig) -> None:
    other = dataclasses.replace(distilled, resume=True, vocabulary=64)
    with pytest.raises(UserError, match=r"begun with vocabulary 128, not 64"):
        distill(other, progress=False)


def test_a_strange_folder_is_left_alone(config: DistillConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    output = tmp_path / "head.safetensors"
    another = dataclasses.replace(config, work_dir=tmp_path, output=output)
    with pytest.raises(UserError, match="not of fjx distill"):
        distill(another, progress=False)


def test_a_broken_shard_is_named(distilled: DistillConfig, tmp_path: Path) -> None:
    options = json.loads((distilled.work_folder / "options.json").read_text())
    (tmp_path / "options.json").write_text(json.dumps(options))
    (tmp_path / "tokens-000.npz").write_text("nonsense")
    with pytest.raises(UserError, match=r"tokens-000\.npz: broken"):
        distill(dataclasses.replace(distilled, resume=True, work_dir=tmp_path), progress=False)
