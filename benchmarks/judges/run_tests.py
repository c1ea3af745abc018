"""Runs other servers' own tests of the OpenAI API against ``fjx serve`` on the embedded model.

    python benchmarks/judges/run_tests.py vllm --output FILE.json
    python benchmarks/judges/run_tests.py llama --output FILE.json

The tests come out of the projects' source distributions on the package index, which land in a
cache folder with a virtual environment to run them in; neither vLLM, PyTorch nor llama.cpp is
installed. What does not apply is named in ``vllm.toml`` and ``llama.toml`` beside this file, each
with its reason. Ends with status 0 if every test that applies passed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import command_line
from source import unpack_source, virtual_environment

from fjx.bench.report import environment
from fjx.models.loading.source import cache_root, resolve
from fjx.models.tokenizer import load_tokenizer

HERE = Path(__file__).resolve().parent
REQUIREMENTS = (
    "pytest==9.1.1", "pytest-asyncio==1.5.0", "pytest-timeout==2.4.0", "openai==2.14.0",
    "httpx", "requests", "regex", "jsonschema", "tokenizers", "schemathesis==4.32.5", "pybase64",
    "filelock",
)  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """Whose tests they are, and where they lie in its source distribution."""

    requirement: str
    folder: str
    """What is unpacked."""
    tests: str
    """What is run."""
    import_from: str
    """The folder that their own imports start from."""
    package: str | None = None
    """A folder above ``folder`` that their imports need to be a package."""


JUDGES = {
    "vllm": Judge("vllm==0.32.0", "tests/entrypoints", "tests/entrypoints/openai", ".", "tests"),
    "llama": Judge(
        "llama-cpp-python==0.3.36",
        "vendor/llama.cpp/tools/server/tests",
        "vendor/llama.cpp/tools/server/tests/unit",
        "vendor/llama.cpp/tools/server/tests",
    ),
}


def main() -> int:
    """Run a judge and print how it went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("judge", choices=JUDGES)
    parser.add_argument("--only", default="", help="pytest's -k")
    parser.add_argument("--cache", type=Path, help="folder for what is downloaded")
    parser.add_argument("--output", type=Path, help="write the result to this file, as JSON")
    arguments = parser.parse_args()
    judge = JUDGES[arguments.judge]
    cache = arguments.cache or cache_root(None) / "judges"
    cache.mkdir(parents=True, exist_ok=True)
    root = unpack_source(judge.requirement, judge.folder, cache)
    if judge.package is not None:
        (root / judge.package / "__init__.py").touch()
    python = virtual_environment(cache / "environment", REQUIREMENTS)
    outcomes = cache / f"{arguments.judge}-outcomes.json"
    outcomes.unlink(missing_ok=True)
    command = _pytest(arguments.judge, judge, root, cache, outcomes, arguments.only)
    log = cache / f"{arguments.judge}.log"
    with log.open("w") as output:
        status = subprocess.run(
            [str(python), *command], cwd=root / judge.import_from, stdout=output,
            stderr=subprocess.STDOUT, env=_environment(root / judge.import_from),
        ).returncode  # fmt: skip
    if not outcomes.exists():
        raise SystemExit(f"the tests did not run; see {log}")
    result = _result(judge, json.loads(outcomes.read_text()))
    _show(result)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return status


def _pytest(
    name: str, judge: Judge, root: Path, cache: Path, outcomes: Path, only: str
) -> list[str]:
    """The arguments of Python that run a judge's tests."""
    tests = root / judge.tests
    options = ["-m", "pytest", "-q", "-ra", "--tb=short", "--timeout=900", "-p", "no:cacheprovider"]
    options += ["-W", "ignore::pytest.PytestUnknownMarkWarning"]
    options += ["-p", f"{name}_plugin", "-c", os.devnull, f"--rootdir={root / judge.import_from}"]
    options += ["--fjx-python", sys.executable, "--tests-root", str(tests)]
    options += ["--not-applicable", str(HERE / f"{name}.toml"), "--outcomes", str(outcomes)]
    if name == "vllm":
        load_tokenizer(resolve("smollm2-135m")).save(cache)
        options += ["--tokenizer", str(cache / "tokenizer.json")]
    if only:
        options += ["-k", only]
    return [*options, str(tests)]


def _environment(import_from: Path) -> dict[str, str]:
    path = os.pathsep.join([str(HERE), str(import_from)])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def _result(judge: Judge, outcomes: dict[str, Any]) -> dict[str, Any]:
    described = {**environment([]), "command": command_line()}
    return {**described, "tests_of": judge.requirement, **outcomes}


def _show(result: dict[str, Any]) -> None:
    reasons: Sequence[str] = sorted(set(result["not_applicable"].values()))
    for reason in reasons:
        left_out = [name for name, why in result["not_applicable"].items() if why == reason]
        print(f"does not apply: {len(left_out)} tests or files: {reason}")
    for name, test in result["tests"].items():
        if test["outcome"] != "passed":
            print(f"{test['outcome']}: {name}: {test.get('reason', '')}")
    counts = result["counts"]
    print(f"{counts['passed']} of {counts['applicable']} passed ({result['tests_of']})")


if __name__ == "__main__":
    sys.exit(main())
