"""What the judges of benchmarks/judges count, and what they leave out."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

JUDGES = Path(__file__).resolve().parents[3] / "benchmarks" / "judges"

Load = Callable[[str], Any]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(JUDGES))
    return importlib.import_module


@pytest.mark.parametrize("name", ["vllm", "llama"])
def test_every_entry_of_the_lists_has_one_reason(judge: Load, name: str) -> None:
    applicable = judge("applicable")
    tables = applicable.tomllib.loads((JUDGES / f"{name}.toml").read_text())["not_applicable"]
    patterns = [pattern for table in tables for pattern in table["tests"]]
    assert len(patterns) == len(set(patterns))
    assert all(len(table["reason"]) > 10 for table in tables)


def test_names_served_for_tests_alone_are_not_in_the_list_that_they_see(
    judge: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wget", None)  # the plugin has its own
    plugin = judge("llama_plugin")
    names = [{"id": name} for name in ("tinyllama-2", *plugin.NAMES)]
    assert plugin.without_names(names) == [{"id": "tinyllama-2"}]


def test_a_pattern_leaves_out_what_it_names_and_nothing_else(judge: Load) -> None:
    applicable = judge("applicable")
    reasons = {"a/*": "files", "test_b.py": "a file", "test_c.py::test_x[lora]": "a parameter"}
    left_out = ["a/test_z.py", "test_b.py", "test_c.py::test_x[lora]"]
    kept = ["test_a.py", "test_b.py::test_x", "test_c.py::test_x[l]", "test_c.py::test_x"]
    assert [applicable.reason_of(name, reasons) for name in left_out] == [*reasons.values()]
    assert {applicable.reason_of(name, reasons) for name in kept} == {None}


def test_the_plugin_counts_what_applies(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_own.py").write_text("raise SystemExit('never imported')")
    (tests / "test_ours.py").write_text(
        "import pytest\n\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'why'\n"
        "def test_other_model(): assert False\n"
        "@pytest.fixture\ndef broken(): raise ValueError\n"
        "def test_without_server(broken): pass\n"
        "def test_skipped(): pytest.skip('no model')\n"
    )
    listed = tmp_path / "list.toml"
    listed.write_text(
        '[[not_applicable]]\nreason = "own"\ntests = ["test_own.py", "test_ours.py::test_other*"]\n'
    )
    outcomes = tmp_path / "outcomes.json"
    options = ["-p", "applicable", "-p", "no:cacheprovider", "-c", os.devnull, "--fjx-python", "-"]
    options += ["--tests-root", str(tests), "--not-applicable", str(listed)]
    command = [sys.executable, "-m", "pytest", *options, "--outcomes", str(outcomes), str(tests)]
    environment = {**os.environ, "PYTHONPATH": str(JUDGES)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert outcomes.exists(), run.stdout + run.stderr
    result = json.loads(outcomes.read_text())
    assert result["counts"] == {"applicable": 4, "passed": 1, "skipped": 1, "failed": 2}
    assert "why" in result["tests"]["test_ours.py::test_bad"]["reason"]
    assert set(result["not_applicable"]) == {"test_own.py", "test_ours.py::test_other_model"}


def test_only_the_tests_of_a_source_distribution_are_unpacked(judge: Load, tmp_path: Path) -> None:
    source = judge("source")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with tarfile.open(downloads / "some_server-1.0.tar.gz", "w:gz") as archive:
        for name in ("tests/unit/test_a.py", "kernels/big.cu"):
            member = tarfile.TarInfo(f"some_server-1.0/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    root = source.unpack_source("some-server==1.0", "tests", tmp_path)
    assert [path.name for path in root.rglob("*.*")] == ["test_a.py"]


def test_the_fuzz_sends_every_pair_of_extreme_numbers(judge: Load) -> None:
    space = judge("fuzz_space")
    sent = {shot.body for shot in space.shots()}
    for one, other in combinations(space.NUMBERS, 2):
        for left, right in product(space.NUMBERS[one], space.NUMBERS[other]):
            fields = {"max_tokens": "3", one: left, other: right}
            told = ", ".join(f'"{name}": {value}' for name, value in fields.items())
            assert f'{{"prompt": "abc", {told}}}' in sent


def test_the_fuzz_is_the_same_every_time_and_as_long_as_asked(judge: Load) -> None:
    space = judge("fuzz_space")
    shots = space.shots()
    assert shots == space.shots()
    assert len(shots) >= 20_000
    assert shots[:300] == space.shots(300)
    leaving = {shot.leave for shot in shots[:2000]}
    assert leaving == {None, "at once", "after the first event"}


def test_the_items_of_lm_eval_are_the_same_every_time(judge: Load, tmp_path: Path) -> None:
    items = judge("lm_eval_items")
    for name in ("gsm8k_test_300.jsonl", "gsm8k_train.jsonl"):
        problems = [
            {
                "question": f"Ann has {i} pears. She eats one. How many of {i}?",
                "answer": f"#### {i}",
            }
            for i in range(7, 40)
        ]
        (tmp_path / name).write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    tasks = items.write_tasks(tmp_path, tmp_path / "one", 20)
    items.write_tasks(tmp_path, tmp_path / "two", 20)
    for task in tasks:
        text = (tmp_path / "one" / f"{task}.jsonl").read_text()
        assert text == (tmp_path / "two" / f"{task}.jsonl").read_text()
        read = [json.loads(line) for line in text.splitlines()]
        assert len(read) == 20
        for item in read:
            assert len(set(item["choices"])) == 4
            (number,) = {part for part in item["query"].split() if part.isdigit()}
            right = item["choices"][item["label"]]
            assert right == (number if task == "fjx_answers" else f"How many of {number}?")
    with pytest.raises(SystemExit, match="only 33 items"):
        items.write_tasks(tmp_path, tmp_path / "three", 34)


def test_a_choice_that_differs_or_a_number_too_far_is_no_agreement(judge: Load) -> None:
    compare = judge("lm_eval_scores").compare
    known = {("task", 0): [-1.0, -2.0], ("task", 1): [-5.0, -4.0]}
    near = {("task", 0): [-1.0005, -2.0], ("task", 1): [-5.0, -4.0]}
    assert compare(known, near)["agrees"]
    far = compare(known, {**near, ("task", 1): [-5.0, -4.002]})
    assert (far["agrees"], far["same_choice"], far["within_tolerance"]) == (False, 2, 3)
    other = compare(known, {**near, ("task", 1): [-3.0, -4.0]})
    assert (other["agrees"], other["same_choice"]) == (False, 1)


def test_what_schemathesis_found_is_counted(judge: Load) -> None:
    counts = judge("schema").counts
    assert counts("Test cases:\n  1443 generated, 18 found 21 unique failures\n") == {
        "cases": 1443,
        "unique_failures": 21,
    }
    assert counts("Test cases:\n  900 generated, 900 passed\n")["unique_failures"] == 0
