import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fjx.cli import main as command
from fjx.cli.main import BENCHMARKS, COMMANDS, Command, main
from fjx.cli.options import CommandParser
from fjx.serving.config import ServerConfig


def fjx(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fjx", *words], capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["genrate"], "unknown command 'genrate': did you mean fjx generate"),
        (["launch_server"], "unknown command 'launch_server': use fjx serve"),
        (["xyz"], "unknown command 'xyz': expected one of generate, serve, "),
        (["bench", "serv"], "unknown command 'serv': did you mean fjx serve"),
        (["serve", "a", "b"], "one model at a time, got a, b"),
        (["serve", "a", "--model", "b"], "'a' and --model 'b' name the same thing; give one"),
        (["serve", "--qqq"], "unknown argument --qqq$"),
        (
            ["serve", "--max-model-len", "8kb"],
            "--max-model-len: expected a whole number, got '8kb'",
        ),
        (["serve", "--max-model-len", "1.0005k"], "expected a whole number, got '1.0005k'"),
        (["serve", "--served-model-name", ""], "served_model_name must not be empty"),
        (["generate"], "one of the arguments --prompt --prompts is required"),
        (["generate", "--prompt", "a", "--modle", "x"], "unknown argument --modle; .* --model"),
        (["generate", "--prompt", "a", "b"], "unknown argument b"),
        (["generate", "--prompt", "a", "--top-p", "2"], r"top_p must be in \(0, 1\], got 2"),
        (["generate", "--prompts", "/nowhere/p.jsonl"], "cannot read /nowhere/p.jsonl"),
        (["generate", "--prompt", "a", "--config", "/nowhere"], "cannot read /nowhere"),
        (["serve", "--port", "70000"], "port must be in"),
        (["serve", "--page-size", "0"], "page_size must be at least 1, got 0"),
        (["serve", "--quantization", "int4"], "--quantization: .*one of int8, fp8; got 'int4'"),
        (["serve", "--draft-policy", "best"], "draft_policy: .*best"),
        (["generate", "--prompt", "a", "--draft-policy", "fixed:x"], "draft_policy: .*fixed:x"),
        (["serve", "--max-draft-length", "65"], r"max_draft_length must be in \[0, 64\], got 65"),
        (["serve", "--max-frontiers", "0"], r"max_frontiers must be in \[1, 16\], got 0"),
        (
            ["generate", "--prompt", "a", "--max-draft-tokens", "-1"],
            "max_draft_tokens must be at least 0, got -1",
        ),
        (["bench", "latency", "--num-iters", "0"], "num_iters must be at least 1"),
        (["bench", "serve", "--goodput", "itl:5"], "goodput: expected METRIC:MILLISECONDS"),
        (["bench", "serve", "--output", "/nowhere/r.json"], "output: cannot write"),
        (["bench", "serve", "--endpoint", "x"], "expected one of completions, chat; got 'x'"),
        (["plan", "--dtype", "x"], "--dtype: expected one of float32, bfloat16; got 'x'"),
        (["plan", "--quantization", "x"], "--quantization: expected one of int8, fp8; got 'x'"),
        (["place", "--scorer", "x"], "--scorer: expected one of fragment, flexpipe; got 'x'"),
        (["convert", "a", "b", "--dtype", "x"], "--dtype: expected one of float32, bfloat16; got"),
        (["convert", "a"], "the following arguments are required: DST"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("fjx: error: ")
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(line)


def test_the_process_exits_with_that_code() -> None:
    done = fjx("generate", "--prompts", "/nowhere/p.jsonl")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "fjx: error: cannot read /nowhere/p.jsonl: No such file or directory"
    ]


def test_an_unexpected_error_keeps_its_traceback() -> None:
    script = (
        "import sys, fjx.cli.main as m, fjx.bench.load as load\n"
        "def broken(config): raise ZeroDivisionError('a bug')\n"
        "load.run_load = broken\n"
        "sys.exit(m.main(['bench', 'serve']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr


def test_ctrl_c_is_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(argv: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", interrupt)
    assert main([]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_stdout_is_quiet(unbuffered: str) -> None:
    script = (
        "import sys, fjx.cli.main as m\n"
        "m._run = lambda argv: print('an answer') or 0\n"
        "sys.exit(m.main([]))"
    )
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=write_end,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(write_end)
    _, err = process.communicate(timeout=300)
    assert err == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["generate"],
        ["serve"],
        ["convert"],
        ["plan"],
        ["bench"],
        ["bench", "serve"],
        ["bench", "latency"],
    ],
)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*words, "--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(" ".join(["usage: fjx", *words]))


@pytest.mark.parametrize("command", [*COMMANDS, *BENCHMARKS], ids=lambda each: each.summary)
def test_help_calls_options_by_their_names(command: Command) -> None:
    parser = CommandParser(prog="fjx")
    command.add_options(parser)
    names = {flag.removeprefix("--").replace("-", "_") for flag in parser.flags}
    json_keys = {"prompt_tokens", "token_ids", "finish_reason", "drafted_tokens"}
    json_keys |= {"accepted_tokens", "pruned_tokens", "input_length", "output_length", "hash_ids"}
    text = " ".join(parser.format_help().split())
    assert set(re.findall(r"\b[a-z]+(?:_[a-z]+)+", text)) <= json_keys - names


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_options_of_speculation_stand_together(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    _, group = capsys.readouterr().out.split("\nspeculation:\n")
    group, *_ = group.split("\n\n")
    for option in ("--drafter", "--draft-policy", "--max-draft-length", "--draft-mesh"):
        assert option in group
    assert ("--max-draft-tokens" in group) == (command == "generate")


@pytest.mark.parametrize("words", [[], ["bench"]])
def test_a_command_alone_shows_what_there_is(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["usage: fjx", *words]))
    assert "serve" in out
    assert err == ""


def test_help_does_not_wait_for_heavy_imports() -> None:
    script = (
        "import sys\nfrom fjx.cli.main import main\n"
        "for command in ('generate', 'plan'):\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit: pass\n"
        "print(sorted({'jax', 'numpy', 'fastapi', 'httpx', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


WRONG_NAMES = {
    "serve nonexistent": "model 'nonexistent' not found",
    "serve --mesh nope": "there is no mesh 'nope'",
    "serve --plan-ladder single nope": "there is no mesh 'nope'",
    "serve --draft-mesh nope": "there is no mesh 'nope'",
    "serve --mesh nope.toml": "cannot read mesh file nope.toml",
    "serve --profile nope.json": "cannot read profile nope.json",
    "serve --tokenizer nope": "model 'nope' not found",
    "serve --drafter foo": "drafter 'foo' not found; expected auto, ngram, head, off, a draft head",
    "serve --drafter foo.safetensors": "foo.safetensors: there is no such draft head",
    "serve --cluster auto --cluster-file nope.toml": "cannot read cluster file nope.toml",
    "generate --prompt a --model nonexistent": "model 'nonexistent' not found",
    "generate --prompt a --mesh nope": "there is no mesh 'nope'",
    "bench throughput --model nonexistent": "model 'nonexistent' not found",
    "bench latency --drafter foo": "drafter 'foo' not found",
    "plan --model nonexistent": "model 'nonexistent' not found",
    "plan --mesh nope": "there is no mesh 'nope'",
    "plan --from nope": "there is no mesh 'nope'",
    "plan --cluster nope.toml": "cannot read cluster file nope.toml",
    "place --profile nope.json": "cannot read profile nope.json",
    "place --mesh nope": "there is no mesh 'nope'",
    "profile --model nonexistent": "model 'nonexistent' not found",
    "convert nonexistent dst": "model 'nonexistent' not found",
    "distill --model nonexistent --output h.safetensors": "model 'nonexistent' not found",
}


def test_what_is_not_there_is_told_before_heavy_imports(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom fjx.cli.main import main\n"
        "for words in sys.argv[1:]:\n"
        "    code = main(words.split())\n"
        "    print(code, 'jax' in sys.modules, 'fastapi' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *WRONG_NAMES],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines() == ["2 False False"] * len(WRONG_NAMES)
    for line, message in zip(done.stderr.splitlines(), WRONG_NAMES.values(), strict=True):
        assert message in line


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    name, version = capsys.readouterr().out.split()
    assert name == "fjx"
    assert version[0].isdigit()


@pytest.mark.parametrize(
    "words",
    [["org/model", "--port", "99"], ["--port", "99", "org/model"], ["--port=99", "-m=x", "y"]],
)
def test_serve_takes_its_model_like_vllm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    from fjx.serving import run

    served: list[Any] = []
    monkeypatch.setattr(run, "serve", lambda *configs: served.append(configs))
    if "-m=x" in words:
        assert main(["serve", *words]) == 2
        assert "unknown argument -m: use --model x: a folder" in capsys.readouterr().err
        return
    names = ["--served-model-name", "a", "b"]
    assert main(["serve", *words, *names, "--max-model-len", "4K", "--max-num-seqs", "8"]) == 0
    ((engine, server),) = served
    assert (engine.model, engine.max_model_len, engine.max_num_seqs) == ("org/model", 4096, 8)
    assert (server.port, server.served_model_name) == (99, ("a", "b"))


def test_one_name_of_the_model_needs_no_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fjx.serving import run

    served: list[Any] = []
    monkeypatch.setattr(run, "serve", lambda *configs: served.append(configs))
    file = tmp_path / "fjx.toml"
    file.write_text('[server]\nserved_model_name = "one"\n')
    assert main(["serve", "--config", str(file)]) == 0
    ((_, server),) = served
    assert server.served_model_name == ("one",)
    assert ServerConfig(served_model_name="one").served_model_name == ("one",)  # type: ignore[arg-type]


def test_serve_hands_both_configs_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fjx.serving import run

    served = []
    monkeypatch.setattr(run, "serve", lambda *configs: served.append(configs))
    file = tmp_path / "fjx.toml"
    file.write_text('[server]\nport = 1234\nhost = "0.0.0.0"\n[engine]\nmodel = "org/m"\n')
    words = ["--config", str(file), "--port", "99", "--max-num-seqs", "4", "--seed", "5"]
    assert main(["serve", *words]) == 0
    ((engine, server),) = served
    assert server == ServerConfig(host="0.0.0.0", port=99)
    assert (engine.model, engine.max_num_seqs, engine.seed) == ("org/m", 4, 5)
