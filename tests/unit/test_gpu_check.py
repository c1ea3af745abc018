"""How `scripts/gpu_check.py` runs checks: whatever one does, the others are run and told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
CHECKS = """
import os, time

def raises():
    yield 1
    raise ValueError("wrong by far")

def checks():
    return {
        "first": lambda: {"seconds": 1.5},
        "raises": raises,
        "pieces": lambda: (i for i in range(3)),
        "ends": lambda: os._exit(7),
        "hangs": lambda: time.sleep(600),
        "process": os.getpid,
        "last": os.getpid,
    }
"""


def run(tmp_path: Path, seconds: float, end: float, *checks: str) -> tuple[list[str], Any]:
    """The checks that failed, and what was told of each last."""
    (tmp_path / "some_checks.py").write_text(CHECKS)
    program = f"""
import json, sys, time
sys.path[:0] = [{str(SCRIPTS)!r}, {str(tmp_path)!r}]
import gpu_check
if __name__ == "__main__":
    told = {{}}
    failed = gpu_check.run_apart(
        "some_checks", {checks!r}, told.__setitem__, {seconds}, time.monotonic() + {end}
    )
    print(json.dumps([failed, told]))
"""
    script = tmp_path / "run.py"
    script.write_text(program)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    failed, told = json.loads(ran.stdout)
    return failed, told


def test_a_check_that_fails_hides_no_other(tmp_path: Path) -> None:
    checks = ("first", "raises", "pieces", "ends", "process", "last")
    failed, told = run(tmp_path, 60, 600, *checks)
    assert failed == ["raises", "ends"]
    assert list(told) == list(checks)
    assert told["first"] == {"seconds": 1.5}
    assert "ValueError: wrong by far" in told["raises"]["error"]
    assert told["raises"]["before"] == [1]
    assert told["pieces"] == [0, 1, 2]
    assert "code 7" in told["ends"]["error"]
    assert told["process"] == told["last"], "checks share a process while none has failed"


def test_a_check_that_hangs_is_ended_and_the_time_for_all_is_kept(tmp_path: Path) -> None:
    begun = time.monotonic()
    failed, told = run(tmp_path, 3, 600, "hangs", "first")
    assert failed == ["hangs"]
    assert "too long" in told["hangs"]["error"]
    assert told["first"] == {"seconds": 1.5}
    failed, told = run(tmp_path, 60, 3, "hangs", "first")
    assert failed == ["hangs"]
    assert "skipped" in told["first"]
    assert time.monotonic() - begun < 60


def test_checks_that_do_not_exist_are_refused() -> None:
    ran = subprocess.run(
        [sys.executable, SCRIPTS / "gpu_check.py", "--lower-only", "--only", "timing", "atention"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "there is no atention" in ran.stderr
    assert "attention/numbers" in ran.stderr


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of the script with a module that does not compile, and one that cannot say what."""
    folder = tmp_path / "gpu_checks"
    folder.mkdir()
    (tmp_path / "gpu_check.py").write_text((SCRIPTS / "gpu_check.py").read_text())
    (folder / "__init__.py").write_text("")
    end = "\ndef checks():\n    return {}\n"
    (folder / "a.py").write_text("def lowered():\n    yield 'x', lambda: 1 / 0\n" + end)
    (folder / "b.py").write_text("def lowered():\n    yield 'y', int\n    1 / 0\n" + end)
    return tmp_path


def test_what_does_not_compile_is_counted_and_named(broken: Path) -> None:
    ran = subprocess.run(
        [sys.executable, broken / "gpu_check.py", "--lower-only"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stdout == "1 of 3 compile for CUDA\n"
    assert "FAILED: a: x" in ran.stderr
    assert "FAILED: b: lowered()" in ran.stderr
