"""`fjx distill`: its options, what it prints, and how its errors end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fjx.distill.distill as distill_module
from fjx.cli.main import main
from fjx.distill.acceptance import Acceptance
from fjx.distill.config import DistillConfig
from fjx.errors import UserError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DistillConfig, Any]]:
    """What was asked for; nothing is trained."""
    made: list[tuple[DistillConfig, Any]] = []

    def distill(config: DistillConfig, command: list[str]) -> dict[str, Acceptance]:
        made.append((config, command))
        greedy = Acceptance(np.array([100, 70]), np.array([70, 35]))
        return {"greedy": greedy, "temperature 0.8": greedy + greedy}

    monkeypatch.setattr(distill_module, "distill", distill)
    return made


def test_options_and_the_table(
    calls: list[tuple[DistillConfig, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "head.safetensors"
    data = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in data:
        path.write_text('{"prompt": "Hello"}')
    words = ["distill", "--model", "a/tiny", "--output", str(output), "--data", *map(str, data)]
    assert main([*words, "--tokens", "5000", "--vocabulary", "4096", "--minutes", "2.5"]) == 0
    ((config, command),) = calls
    assert (config.model, config.output) == ("a/tiny", output)
    assert config.data == tuple(data)
    assert (config.tokens, config.vocabulary, config.minutes) == (5000, 4096, 2.5)
    assert config.work_folder == tmp_path / "head.distill"
    assert command[: len(words)] == words
    out, err = capsys.readouterr()
    _, headings, greedy, sampled = out.splitlines()
    assert headings.split()[-5:] == ["token", "1", "token", "2", "accepted"]
    assert greedy.split() == ["greedy", "100", "0.700", "0.500", "1.05"]
    assert sampled.split()[:3] == ["temperature", "0.8", "200"]
    assert f"wrote {output}" in err
    told, *_ = err.splitlines()
    assert "5,000 tokens are generated" in told
    assert "up to 2.5 minutes" in told
    assert f"{tmp_path / 'head.distill'} keeps" in told
    assert told.endswith(f"{output} will be the head")


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ([], "--model and --output must be given"),
        (["--model", "smollm2-135m"], "error: --output must be given"),
        (["--output", "head.safetensors"], "error: --model must be given"),
    ],
)
def test_nothing_long_begins_by_itself(
    words: list[str],
    missing: str,
    calls: list[tuple[DistillConfig, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["distill", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert missing in line
    assert "It takes long" in line
    assert not calls


def test_a_head_that_is_there_is_not_overwritten(
    calls: list[tuple[DistillConfig, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "head.safetensors"
    output.write_text("an hour's work")
    words = ["distill", "--model", "a/tiny", "--output", str(output)]
    assert main(words) == 2
    assert f"output: {output} exists already" in capsys.readouterr().err
    assert not calls
    assert main([*words, "--resume"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "head.bin"], "output: expected a .safetensors file, got head.bin"),
        (["--output", "/no/such/folder/head.safetensors"], "the folder /no/such/folder is missing"),
        (["--tokens", "0"], "tokens must be at least 1, got 0"),
        (["--minutes", "0"], "minutes must be positive, got 0"),
        (["--window", "100"], "window (100) must hold an output of max_tokens (224)"),
        (["--hidden-weight", "-1"], "hidden_weight must be at least 0"),
        (["--vocabulary", "many"], "expected a whole number, got 'many'"),
        (["--tokns", "1"], "unknown argument --tokns; did you mean --tokens?"),
    ],
)
def test_bad_options_are_one_line(
    words: list[str],
    message: str,
    calls: list[tuple[DistillConfig, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--model", "smollm2-135m", "--output", str(tmp_path / "head.safetensors")]
    assert main(["distill", *given, *words]) == 2
    assert not calls
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fjx: error: ")
    assert message in line


def test_errors_of_the_work_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def distill(config: DistillConfig, command: list[str]) -> dict[str, Acceptance]:
        raise UserError("there are no outputs to train on")

    monkeypatch.setattr(distill_module, "distill", distill)
    output = str(tmp_path / "head.safetensors")
    assert main(["distill", "--model", "a/tiny", "--output", output]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line == "fjx: error: there are no outputs to train on"
