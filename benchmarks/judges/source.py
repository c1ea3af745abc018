"""Brings the tests that other servers judge themselves by: source distributions and an environment.

Everything lands under a cache folder; nothing of it is part of this repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Sequence
from pathlib import Path

_BACKEND = '''"""Tells pip a package's name and version, which PKG-INFO holds; builds nothing."""
import email, pathlib, shutil

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    about = email.message_from_string(pathlib.Path("PKG-INFO").read_text(encoding="utf-8"))
    name = f"{about['Name'].replace('-', '_')}-{about['Version']}.dist-info"
    (pathlib.Path(folder) / name).mkdir()
    shutil.copy("PKG-INFO", pathlib.Path(folder) / name / "METADATA")
    return name
'''
_BACKEND_MODULES = ("setuptools/build_meta.py", "scikit_build_core/build.py")
"""Where the packages' own pyproject.toml says that their build begins; that would need PyTorch."""


def unpack_source(requirement: str, inside: str, cache: Path) -> Path:
    """Download the source distribution of an exact version and unpack one folder of it.

    Args:
        requirement: such as ``vllm==0.32.0``.
        inside: the folder, seen from the distribution's root.
        cache: what is there already is not fetched again.

    Returns:
        The root of what was unpacked; ``inside`` lies below.
    """
    name, version = requirement.split("==")
    root = cache / f"{name}-{version}"
    if (root / inside).is_dir():
        return root
    archive = _download(requirement, cache)
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            _, _, rest = member.name.partition("/")
            if member.isfile() and rest.startswith(f"{inside}/"):
                member.name = rest
                packed.extract(member, root, filter="data")
    if not (root / inside).is_dir():
        raise SystemExit(f"{archive.name} has no folder {inside}")
    return root


def virtual_environment(folder: Path, requirements: Sequence[str]) -> Path:
    """The Python of a virtual environment with these packages, made where it is missing."""
    python = folder / "bin" / "python"
    known = folder / "requirements.txt"
    wanted = "\n".join(requirements) + "\n"
    if not known.exists() or known.read_text() != wanted:
        venv.create(folder, with_pip=True)
        command = [python, "-m", "pip", "install", "-qq", *requirements]
        subprocess.run([str(part) for part in command], check=True)
        known.write_text(wanted)
    return python


def _download(requirement: str, cache: Path) -> Path:
    downloads, backend = cache / "downloads", cache / "backend"
    found = _archives(downloads, requirement)
    if not found:
        for module in _BACKEND_MODULES:
            file = backend / module
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_BACKEND)
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        command = [sys.executable, "-m", "pip", "download", *options]
        subprocess.run(
            [*command, "--quiet", "--dest", str(downloads), requirement],
            check=True,
            env={**os.environ, "PYTHONPATH": str(backend)},
        )
        found = _archives(downloads, requirement)
    return found[0]


def _archives(downloads: Path, requirement: str) -> list[Path]:
    pattern = requirement.replace("-", "_").replace("==", "-") + ".tar.gz"
    return sorted(downloads.glob(pattern))
