"""What a person who clones the repository relies on: documents, packages, pins, set-up."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.11", "3.12", "3.13")
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
OPTIONAL = {
    "cluster": {"fjx.cluster"},
    "png": {"fjx.plots"},
    "sim": {"fjx.sim"},
}
"""Extra to the packages that may import what it brings."""
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")})


def pins(python: str) -> dict[str, str]:
    """Name to exact version for one Python."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(
                {"python_version": python}
            ):
                (exact,) = requirement.specifier
                assert exact.operator == "=="
                found[normalized(requirement.name)] = exact.version
    return found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_dependencies() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *extras["test"], *extras["dev"]]
    return [Requirement(text) for text in texts if not text.startswith("fjx[")]


def third_party_imports() -> Iterator[tuple[str, str]]:
    """Each import of another project: the package of ours that has it, and its top-level module."""
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        for file in (ROOT / package.replace(".", "/")).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names: Iterable[str] = ()
                match node:
                    case ast.Import():
                        names = [alias.name for alias in node.names]
                    case ast.ImportFrom(module=str(module), level=0):
                        names = [module]
                for name in names:
                    top = name.partition(".")[0]
                    if top != "fjx" and top not in sys.stdlib_module_names:
                        yield package, top


def names_of(requirements: Iterable[str]) -> set[str]:
    return {normalized(Requirement(text).name) for text in requirements}


def test_support_matrix_in_readme_is_the_current_one() -> None:
    script = ROOT / "scripts" / "support_matrix.py"
    check = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_gaps_of_the_support_matrix_are_those_that_are_known() -> None:
    """A feature whose test is renamed or moved would become a gap that nobody sees."""
    gaps = re.findall(r"^\| (.+) \| not yet \| - \|$", (ROOT / "README.md").read_text(), re.M)
    assert gaps == ["GPU", "Structured output", "LoRA"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if not target.startswith(("http:", "https:")):
            path, _, anchor = target.partition("#")
            linked = document.parent / path if path else document
            assert linked.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
                assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_functions_and_classes_of_the_walkthrough_are_where_it_says() -> None:
    page = ROOT / "docs" / "walkthrough.md"
    named = re.findall(r"\[`([\w.]+)`\]\(([^)]+\.py)\)", page.read_text())
    assert named
    for name, link in named:
        within: Sequence[ast.stmt] = ast.parse((page.parent / link).read_text()).body
        for part in name.split("."):
            definitions = [each for each in within if isinstance(each, _DEFINITIONS)]
            found = next((each for each in definitions if each.name == part), None)
            assert found is not None, f"{name} is not in {link}"
            within = found.body


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_dependency_within_its_range(python: str) -> None:
    pinned = pins(python)
    for requirement in direct_dependencies():
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        name = normalized(requirement.name)
        assert name in pinned, f"{name} has no pin for Python {python}"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} with {pinned[name]}"


def test_every_imported_project_is_declared_and_every_declared_one_is_imported() -> None:
    """What another dependency happens to bring may be gone with its next version."""
    project = PROJECT["project"]
    required = names_of(project["dependencies"])
    extras = {name: names_of(project["optional-dependencies"][name]) for name in OPTIONAL}
    projects = packages_distributions()
    used = set()
    for package, module in sorted(set(third_party_imports())):
        found = {normalized(name) for name in projects.get(module, [module])}
        allowed = required.union(
            *(extras[extra] for extra, owners in OPTIONAL.items() if package in owners)
        )
        assert found & allowed, f"{package} imports {module}, which pyproject.toml lacks"
        used |= found
    assert required - used == {"httptools"}, "uvicorn's fast HTTP parser, which it asks us for"
    for extra, names in extras.items():
        assert names <= used, f"nothing imports what the extra {extra} brings"


def test_constraints_hold_no_addresses() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "--" not in text


def test_every_folder_with_modules_is_installed() -> None:
    present = {
        ".".join(Path(folder).relative_to(ROOT).parts)
        for folder, _, files in os.walk(ROOT / "fjx", followlinks=True)
        if "__init__.py" in files
    }
    assert present == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that set-up reads, in a folder whose path has a space, without git."""
    copy = tmp_path / "a clone"
    copy.mkdir()
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    return copy


def run_setup(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", clone / "scripts" / "setup.sh", *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_setup_refuses_a_python_that_is_too_old(clone: Path) -> None:
    old = clone / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    setup = run_setup(clone, FJX_PYTHON=str(old))
    assert setup.returncode == 2
    assert "FJX_PYTHON must be a Python 3.11 to 3.13" in setup.stderr
    assert not (clone / ".venv").exists()


def test_setup_without_python_says_what_was_tried_and_what_to_install(
    clone: Path, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "sort"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    fake = tools / "python3"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    setup = run_setup(clone, PATH=str(tools), HOME=str(tmp_path / "empty"))
    assert setup.returncode == 2
    assert f"tried {fake}: does not run" in setup.stderr
    assert "apt install" in setup.stderr


def test_setup_knows_its_extras(clone: Path) -> None:
    setup = run_setup(clone, "tests")
    assert setup.returncode == 2
    assert "expected test, dev or cuda" in setup.stderr


def test_a_row_of_pruning_that_pruned_nothing_says_so() -> None:
    results = ROOT / "benchmarks" / "results"
    pruned = 0.0
    for path in results.glob("speculation_ablations*_2026-11-28.json"):
        loads = json.loads(path.read_text())["loads"].values()
        pruned += sum(load["policies"]["with pruning"]["pruned_tokens"] for load in loads)
    (row,) = re.findall(r"^\| with .*pruning.*$", (ROOT / "docs/benchmarks.md").read_text(), re.M)
    assert ("which pruned no token" in row) == (pruned == 0)


def test_what_the_newest_jax_leaves_out_is_there() -> None:
    script = (ROOT / "scripts" / "test_newest.sh").read_text()
    listed = re.search(r"NOT_WITH_NEWEST=\(([^)]+)\)", script)
    assert listed is not None
    for name in listed[1].split():
        assert (ROOT / "tests" / "unit" / name).exists(), name
