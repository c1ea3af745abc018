"""Options and commands of other servers: each gets a hint that leads to what is here."""

from __future__ import annotations

import re

import pytest

from fjx.cli.foreign import FOREIGN_OPTIONS, meaning
from fjx.cli.main import build_parser, main
from fjx.sharding.planner.mesh_file import parse_mesh


def options_of(*commands: str) -> set[str]:
    parser = build_parser()
    return {option for name in commands for option in parser.commands[name].option_strings}


@pytest.mark.parametrize("flag", FOREIGN_OPTIONS)
def test_a_hint_names_only_what_there_is(flag: str) -> None:
    known = options_of("serve", "generate")
    for value in (None, "2", "3"):
        hint = meaning(flag, value)
        assert hint is not None
        named = re.findall(r"(?<![\w-])--?[a-z][\w-]*", hint)
        assert set(named) <= known, hint
        assert "{" not in hint


def test_no_foreign_option_is_one_of_ours() -> None:
    assert not set(FOREIGN_OPTIONS) & options_of("serve")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--tensor-parallel-size", "2"], "use --mesh tensor-2"),
        (["--tensor-parallel-size=2"], "use --mesh tensor-2"),
        (["--tensor_parallel_size", "2"], "use --mesh tensor-2"),
        (["-tp", "3"], r"use --mesh with a file that says \[\[stage\]\] and below it tensor = 3"),
        (["--pipeline-parallel-size", "4", "org/model"], "use --mesh pipeline-4"),
        (["--tp"], "use --mesh tensor-2"),
        (["--tp", "1"], "use --mesh single, the default"),
        (["--tp", "2", "--pipeline-parallel-size=2"], "use --mesh pipeline-2-tensor-2"),
        (
            ["-pp", "3", "-tp", "2"],
            r"use --mesh with a file that says \[\[stage\]\] 3 times and below each tensor = 2",
        ),
        (["--pp", "4", "--tp", "1"], "use --mesh pipeline-4"),
        (
            ["--gpu-memory-utilization", "0.9"],
            "use --kv-cache-memory GIB: KV memory is given in GiB",
        ),
        (["--tool-call-parser", "hermes"], "tool calls are not parsed"),
        (["--enforce-eager"], "--no-warmup compiles each when it is first needed"),
        (["--swap-space", "4"], "nothing is swapped"),
        (["--trust-remote-code"], "no code of a model's repository is ever run"),
        (["--speculative-config", '{"method": "ngram"}'], "use --drafter: ngram"),
        (["-c", "4096"], "use --max-model-len 4096"),
        (["--ctx-size", "4096", "-np", "2"], "use --max-model-len 4096"),
        (["-np", "2"], "use --max-num-seqs 2"),
        (["--model-path", "org/model"], "use --model org/model"),
        (["--port", "80", "-m", "x.gguf"], "use --model x.gguf"),
        (["--modle", "x"], r"did you mean --model\?"),
    ],
)
def test_another_servers_habit_gets_the_right_hint(
    capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    assert main(["serve", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fjx: error: unknown argument -")
    assert re.search(hint, line), line


def test_two_models_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "org/one", "org/two"]) == 2
    error = capsys.readouterr().err
    assert error == "fjx: error: one model at a time, got org/one, org/two\n"


def test_help_breaks_no_name_at_a_hyphen(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = build_parser().commands["serve"]
    for columns in range(60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert not re.search(r"\w-\n", parser.format_help())


def test_the_hint_comes_before_other_complaints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-m", "x", "-p", "hello"]) == 2
    assert "unknown argument -m: use --model x" in capsys.readouterr().err


def test_what_is_behind_two_dashes_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--", "-m"]) == 2
    assert "use --model" not in capsys.readouterr().err


def test_the_lines_of_a_hint_make_a_mesh_file() -> None:
    assert parse_mesh("[[stage]]\ntensor = 3").stages[0].tensor == 3
    assert len(parse_mesh("[[stage]]\n" * 3).stages) == 3
    assert parse_mesh("replicas = 3\n[[stage]]").replicas == 3


def test_a_key_of_the_file_gets_the_hint_too(tmp_path, capsys) -> None:
    file = tmp_path / "fjx.toml"
    file.write_text("[engine]\ngpu_memory_utilization = 0.9\n")
    assert main(["serve", "--config", str(file)]) == 2
    assert "use --kv-cache-memory GIB" in capsys.readouterr().err
