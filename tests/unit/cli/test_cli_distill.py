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
    words = ["distill", "--model", "tiny", "--output", str(output), "--data", "a.jsonl", "b.jsonl"]
    assert main([*words, "--tokens", "5000", "--vocabulary", "4096", "--minutes", "2.5"]) == 0
    ((config, command),) = calls
    assert (config.model, config.output) == ("tiny", output)
    assert config.data == (Path("a.jsonl"), Path("b.jsonl"))
    assert (config.tokens, config.vocabulary, config.minutes) == (5000, 4096, 2.5)
    assert config.work_folder == tmp_path / "head.distill"
    assert command[: len(words)] == words
    out, err = capsys.readouterr()
    _, headings, greedy, sampled = out.splitlines()
    assert headings.split()[-5:] == ["token", "1", "token", "2", "accepted"]
    assert greedy.split() == ["greedy", "100", "0.700", "0.500", "1.05"]
    assert sampled.split()[:3] == ["temperature", "0.8", "200"]
    assert f"wrote {output}" in err


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
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["distill", *words]) == 2
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
    assert main(["distill", "--output", str(tmp_path / "head.safetensors")]) == 2
    assert capsys.readouterr().err == "fjx: error: there are no outputs to train on\n"
