from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from fjx.cli.main import main
from fjx.pipeline import compiler
from fjx.sharding.costs.profile import read_profile
from tests.unit.engine.tiny import HF_CONFIG

SIZES = ["--max-num-seqs", "4", "--max-num-batched-tokens", "8", "--context", "40"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's configuration, without weights and without a tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    return folder


@pytest.fixture(scope="module")
def profiled(model: Path) -> tuple[Path, str, str]:
    """A profile of the model, and what was printed on stdout and stderr while it was made."""
    path, out, err = model / "profile.json", io.StringIO(), io.StringIO()
    words = ["--model", str(model), "--dtype", "float32", "--granule-layers", "3", "--tensor", "2"]
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(compiler, "_use_persistent_cache", lambda folder: None)
        assert main(["profile", *words, *SIZES, "--repeats", "1", "--output", str(path)]) == 0
    return path, out.getvalue(), err.getvalue()


def test_the_table_shows_each_piece_and_the_step(
    model: Path, profiled: tuple[Path, str, str]
) -> None:
    tables = profiled[1].split("\n\n")
    assert len(tables) == 2
    for degree, table in enumerate(tables, start=1):
        title, headings, *rows = table.splitlines()
        assert title.startswith(f"{model}, float32, 40 tokens of context, on cpu")
        assert title.endswith(f"tensor degree {degree}; ms")
        assert headings.split() == [
            *("rows", "embed", "granule", "0", "granule", "1", "head", "step")
        ]
        assert [row.split()[0] for row in rows] == ["2", "4", "8"]
        for row in rows:
            *pieces, step = map(float, row.split()[1:])
            assert sum(pieces) == pytest.approx(step, rel=0.02)


def test_progress_goes_to_stderr(profiled: tuple[Path, str, str]) -> None:
    assert "\r" not in profiled[2]
    assert "Measuring" not in profiled[1]
    assert profiled[2].splitlines()[-1] == f"wrote {profiled[0]}"


def test_the_file_says_how_it_was_measured(profiled: tuple[Path, str, str]) -> None:
    graph = read_profile(profiled[0])
    assert graph.buckets == (2, 4, 8)
    assert [degree for degree, _ in graph.head.seconds] == [1, 2]
    machine = json.loads(profiled[0].read_text())["machine"]
    assert machine["device"] == "cpu"
    assert machine["dtype"] == "float32"
    assert int(machine["cores"]) >= 1


def test_plans_are_made_from_it(
    profiled: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--profile", str(profiled[0]), "--mesh", "pipeline-2"]) == 0
    assert "2 stages" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tensor", "3"], "tensor degree 3 does not divide .* use 1 or 2"),
        (["--tensor", "0"], "tensor degrees must be at least 1, got 0"),
        (["--tensor", "two"], "--tensor: expected a whole number, got 'two'"),
        (["--context", "0"], "context must be at least 1, got 0"),
        (["--context", "1000"], "1000 tokens of context, but the engine's longest is 256"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--granule-layers", "0"], "granule_layers must be at least 1, got 0"),
        (["--max-num-seqs", "16"], r"max_num_batched_tokens \(8\) must be at least max_num_seqs"),
        (["--output", "/nowhere/profile.json"], "output: cannot write /nowhere/profile.json"),
        (["--model", "/nowhere/model"], "model '/nowhere/model' not found"),
        (["--contxt", "5"], "unknown argument --contxt; .* --context"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    model: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(["profile", "--model", str(model), *SIZES, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(line)


def test_help_shows_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["profile", "--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: fjx profile [options]")
    assert "--tensor N [N ...]" in out
