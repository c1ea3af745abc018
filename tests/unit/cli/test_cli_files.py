"""Files that cannot be read or written: one line and exit code 2, before any work begins."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fjx
from fjx.cli.main import main
from fjx.config import EngineConfig
from fjx.engine.start import start_engine
from fjx.errors import UserError
from fjx.models.loading.source import cache_root

LONG, NUL = "x" * 5000, "a\0b"

READ = [
    "generate --prompt a --mesh {}",
    "generate --prompt a --mesh ./{}.toml",
    "generate --prompt a --model {}",
    "generate --prompt a --tokenizer {}",
    "generate --prompt a --drafter {}",
    "generate --prompt a --drafter {}.safetensors",
    "generate --prompt a --profile {}",
    "generate --prompt a --cache-dir {}",
    "generate --prompt a --config {}",
    "generate --prompts {}",
    "plan --mesh {}",
    "plan --from {}",
    "plan --model {}",
    "plan --cluster {}",
    "plan --profile {}",
    "place --cluster {}",
    "place --mesh {}",
    "profile --model {}",
    "convert {} dst",
    "distill --model smollm2-135m --output h.safetensors --data {}",
    "bench throughput --dataset {}",
    "bench serve --dataset {}",
    "bench serve --trace {}",
]
WRITTEN = [
    "plan --output {}.svg",
    "place --draw {}.svg",
    "generate --prompt a --draw-rounds {}.svg",
    "generate --prompt a --trace-dir {}",
    "serve --plan-ladder single pipeline-2 --decision-log {}",
    "profile --output {}",
    "distill --model smollm2-135m --output {}.safetensors",
    "distill --model smollm2-135m --output h.safetensors --work-dir {}",
    "convert smollm2-135m {}",
    "bench throughput --output {}",
    "bench latency --output {}",
    "bench serve --output {}",
]
PICTURES = [
    "plan --output plan.svg --output {}",
    "place --draw {}",
    "generate --prompt a --draw-rounds {}",
]


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[str, str], str]:
    """Run a command, which must be refused before it measures, loads or fetches anything."""

    def work(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the work began")

    for begins in (
        "fjx.engine.start.load_executors",
        "fjx.models.loading.embedded._download_wheel",
        "fjx.pipeline.profiler.measure",
        "fjx.models.loading.convert.convert",
        "fjx.distill.generate._start",
        "fjx.serving.run.serve",
    ):
        monkeypatch.setattr(begins, work)
    monkeypatch.chdir(tmp_path)

    def run(command: str, name: str) -> str:
        assert main([word.format(name) for word in command.split()]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("fjx: error: ")
        assert len(line) < 1000
        return line

    return run


@pytest.mark.parametrize("name", [LONG, NUL], ids=["long", "nul"])
@pytest.mark.parametrize("command", READ + WRITTEN)
def test_a_name_that_no_file_can_have_is_refused(
    refused: Callable[[str, str], str], command: str, name: str
) -> None:
    refused(command, name)


@pytest.mark.parametrize("command", WRITTEN)
def test_what_cannot_be_written_is_refused_before_the_work(
    refused: Callable[[str, str], str], tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(command, "file/deeper")


@pytest.mark.parametrize("command", PICTURES)
def test_a_png_without_its_package_is_refused_before_the_work(
    refused: Callable[[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "resvg_py" else found(name)
    )
    assert "pip install resvg-py, or name an .svg file" in refused(command, "x.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", ["--drafter off", "--draft-policy off", "--max-draft-tokens 0"])
def test_rounds_that_will_not_be_are_refused_before_the_work(
    refused: Callable[[str, str], str], options: str
) -> None:
    assert "nothing is drafted" in refused(f"generate --prompt a --draw-rounds x.svg {options}", "")


@pytest.mark.parametrize("command", ["generate --prompt a", "profile"])
def test_a_cache_that_is_a_file_is_refused(
    refused: Callable[[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FJX_CACHE", str(tmp_path / "file"))
    line = refused(command, "")
    assert "compiled programs cannot be kept in" in line
    assert "name another folder with --cache-dir or FJX_CACHE" in line


def test_a_home_that_cannot_be_written_to_is_refused(
    refused: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FJX_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/proc")
    line = refused("generate --prompt a", "")
    assert "cannot be kept in /proc/.cache/fjx/programs" in line


def test_nobody_without_a_home_gets_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FJX_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(UserError, match="set HOME, or name another folder with --cache-dir"):
        cache_root(None)


def test_a_mesh_of_the_ladder_that_does_not_suit_is_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fjx.engine import start

    monkeypatch.setattr(start, "load_executors", lambda *_: pytest.fail("it loads"))
    config = EngineConfig(plan_ladder=("single", "tensor-2"), kv_cache_memory=0.05)
    with pytest.raises(UserError, match="tensor degree 2 does not divide 9 query heads"):
        start_engine(config, progress=False)


def test_a_draft_model_that_is_not_there_is_refused_before_loading(
    refused: Callable[[str, str], str],
) -> None:
    assert "drafter './nowhere' not found" in refused(
        "generate --prompt a --drafter {}", "./nowhere"
    )


def test_the_simulator_without_simpy_says_what_to_install() -> None:
    script = "import sys; sys.modules['simpy'] = None\nfrom fjx.sim.workload import SimRequest"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: fjx.sim needs SimPy, which is not installed: pip install simpy"
    )
    assert fjx.__version__
