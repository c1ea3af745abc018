"""Which tests apply, and how they ended: a pytest plugin that the judges share.

A list names what does not apply, and why, as TOML: tables of ``reason`` and ``tests``, which are
patterns of fnmatch for files ("sub/test_file.py") or tests ("test_file.py::test_name*").
"""

from __future__ import annotations

import fnmatch
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

_WORST_FIRST = ("failed", "skipped", "passed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the judge's script hands over."""
    parser.addoption("--fjx-python", required=True, help="Python that has fjx")
    parser.addoption(
        "--tests-root", required=True, type=Path, help="folder that tests are named in"
    )
    parser.addoption("--not-applicable", required=True, type=Path, help="the list, as TOML")
    parser.addoption("--outcomes", required=True, type=Path, help="JSON file to write")


def pytest_configure(config: pytest.Config) -> None:
    """Listen to every test."""
    config.pluginmanager.register(_Recorder(config), "judge-recorder")


def read_reasons(file: Path) -> dict[str, str]:
    """The reason of each pattern."""
    tables = tomllib.loads(file.read_text())["not_applicable"]
    return {pattern: table["reason"] for table in tables for pattern in table["tests"]}


def reason_of(name: str, reasons: Mapping[str, str]) -> str | None:
    """Why a test, or all of a file, does not apply."""
    for pattern, reason in reasons.items():
        if name == pattern or fnmatch.fnmatchcase(name, pattern.replace("[", "[[]")):
            return reason
    return None


class _Recorder:
    """Leaves out what does not apply; writes how the rest ended."""

    def __init__(self, config: pytest.Config) -> None:
        self._root: Path = config.getoption("tests_root").resolve()
        self._file: Path = config.getoption("outcomes")
        self._reasons = read_reasons(config.getoption("not_applicable"))
        self._outcomes: dict[str, dict[str, str]] = {}
        self._left_out: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
            return None
        name = collection_path.resolve().relative_to(self._root).as_posix()
        reason = reason_of(name, self._reasons)
        if reason is None:
            return None
        self._left_out[name] = reason
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        kept, left_out = [], []
        for item in items:
            reason = reason_of(self._name(item), self._reasons)
            if reason is None:
                kept.append(item)
            else:
                left_out.append(item)
                self._left_out[self._name(item)] = reason
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> object:
        report = yield
        known = self._outcomes.setdefault(self._name(item), {"outcome": "passed"})
        if _WORST_FIRST.index(report.outcome) < _WORST_FIRST.index(known["outcome"]):
            known["outcome"] = report.outcome
            known["reason"] = _last_line(report)
        return report

    def pytest_sessionfinish(self) -> None:
        outcomes = [entry["outcome"] for entry in self._outcomes.values()]
        counts = {outcome: outcomes.count(outcome) for outcome in reversed(_WORST_FIRST)}
        result = {
            "counts": {"applicable": len(outcomes), **counts},
            "tests": self._outcomes,
            "not_applicable": self._left_out,
        }
        self._file.write_text(json.dumps(result, indent=1))

    def _name(self, item: pytest.Item) -> str:
        file = item.path.resolve().relative_to(self._root).as_posix()
        return f"{file}::{item.name}"


def _last_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return " ".join(text.split())[:300]
