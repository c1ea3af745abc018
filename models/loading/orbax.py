"""Folders written by ``fjx convert``: canonical tensors in Orbax checkpoints.

    fjx_model.json      the model's configuration, and shape and dtype of every tensor
    tokenizer.json ...  the tokenizer, as Hugging Face files
    weights/embed/      one Orbax PyTree checkpoint for each part of the model,
    weights/layers.0/   a flat dictionary of its tensors, so that both saving and loading
    weights/head/       hold one part of the model at a time

A tied unembedding is not stored.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from fjx.errors import ModelError
from fjx.models.config import ModelConfig
from fjx.models.loading.hf import read_json
from fjx.models.loading.recipes import check_finite, one_line, transposed
from fjx.models.loading.source import ORBAX_MARKER

if TYPE_CHECKING:
    from fjx.models.tokenizer import Tokenizer

WEIGHTS_FOLDER = "weights"
_FORMAT = 1
_DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def save_checkpoint(
    path: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, np.ndarray]],
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model to the folder `path`, which must be empty or not there.

    Args:
        path: the folder; it appears whole or not at all.
        config: the model's configuration.
        tensors: its canonical tensors, those of one part of the model one after another, as
            `read_tensors` gives them.
        tokenizer: written beside the weights, so that the folder can be served.

    Raises:
        ModelError: the folder is in use or cannot be written.
    """
    path = path.absolute()
    check_new(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fjx-") as scratch:
            partial = Path(scratch) / path.name
            partial.mkdir()
            described = _save_parts(partial / WEIGHTS_FOLDER, config, tensors)
            description = {"format": _FORMAT, "config": config.as_dict(), "tensors": described}
            (partial / ORBAX_MARKER).write_text(json.dumps(description, indent=1) + "\n", "utf-8")
            if tokenizer is not None:
                tokenizer.save(partial)
            partial.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_new(path: Path) -> None:
    """Check that a folder is not there yet, or empty.

    Raises:
        ModelError: there is something.
    """
    if os.path.exists(path) and (not path.is_dir() or any(path.iterdir())):
        raise ModelError(f"{path}: exists already; name a new or empty folder")


def _save_parts(
    folder: Path, config: ModelConfig, tensors: Iterable[tuple[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Save every part of the model; return what fjx_model.json says about the tensors."""
    import orbax.checkpoint as ocp  # takes a second to import, and most starts do not need it

    described: dict[str, dict[str, Any]] = {}
    stored = (
        (name, tensor)
        for name, tensor in tensors
        if not (name == "head.unembed" and config.tied_embeddings)
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        for part, members in itertools.groupby(stored, key=lambda item: _split(item[0])[0]):
            described |= _save_part(checkpointer, folder / part, dict(members))
    return described


def _save_part(
    checkpointer: Any, folder: Path, tensors: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    # A function of its own, so that nothing keeps this part alive while the next one is read.
    checkpointer.save(folder, {_split(name)[1]: tensor for name, tensor in tensors.items()})
    return {
        name: {"shape": list(tensor.shape), "dtype": tensor.dtype.name}
        for name, tensor in tensors.items()
    }


def load_orbax_config(folder: Path) -> ModelConfig:
    """Return the configuration of a folder written by `save_checkpoint`.

    Raises:
        ModelError: the description is missing, broken or of another version.
    """
    config = _description(folder)["config"]
    try:
        return ModelConfig.from_dict(config)
    except ModelError as error:
        raise ModelError(f"{folder / ORBAX_MARKER}: {error}") from None


class OrbaxCheckpoint:
    """The tensors of a folder written by `save_checkpoint`, one after another.

    Raises:
        ModelError: the description does not fit the configuration.
    """

    def __init__(
        self, folder: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._folder = folder
        self._tied = config.tied_embeddings
        self._shapes = {
            name: shape
            for name, shape in shapes.items()
            if not (name == "head.unembed" and self._tied)
        }
        described = _description(folder)["tensors"]
        marker = folder / ORBAX_MARKER
        for name in [*self._shapes, *described]:
            if name not in described:
                raise ModelError(f"{marker}: tensor {name!r} is missing")
            if name not in self._shapes:
                raise ModelError(f"{marker}: tensor {name!r} is not part of the model")
        self.nbytes: Mapping[str, int] = {
            name: int(np.prod(shape)) * _dtype(described[name], marker, name).itemsize
            for name, shape in self._shapes.items()
        }

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.read(lambda name: True)

    def read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the tensors that are wanted; parts of the model with none of them are not read."""
        import orbax.checkpoint as ocp  # see _save_parts

        with ocp.PyTreeCheckpointer() as checkpointer:
            for part, names in itertools.groupby(self._shapes, key=lambda name: _split(name)[0]):
                of_part = list(names)
                tied = ("head.unembed",) if "embed.tokens" in of_part and self._tied else ()
                if not any(map(wanted, (*of_part, *tied))):
                    continue
                file = self._folder / WEIGHTS_FOLDER / part
                tree = self._restore(checkpointer, file)
                for name in of_part:
                    tensor = self._checked(name, tree.pop(_split(name)[1], None), file)
                    if wanted(name):
                        yield name, tensor
                    if name == "embed.tokens" and any(map(wanted, tied)):
                        yield "head.unembed", transposed(tensor)
                    del tensor

    def _restore(self, checkpointer: Any, file: Path) -> dict[str, Any]:
        if not file.is_dir():
            raise ModelError(f"{file}: this part of the Orbax checkpoint is missing")
        try:
            tree = checkpointer.restore(file.absolute())
        except Exception as error:  # Orbax and TensorStore document no common type
            raise ModelError(
                f"{file}: the Orbax checkpoint cannot be read: {one_line(error)}"
            ) from None
        return dict(tree)

    def _checked(self, name: str, tensor: Any, file: Path) -> np.ndarray:
        if not isinstance(tensor, np.ndarray):
            raise ModelError(f"{file}: tensor {name!r} is missing")
        if tensor.shape != self._shapes[name]:
            raise ModelError(
                f"{file}: tensor {name!r} has shape {tensor.shape}, expected {self._shapes[name]}"
            )
        if tensor.dtype not in _DTYPES.values():
            raise _wrong_dtype(file, name, tensor.dtype.name)
        check_finite(tensor, file, name)
        return tensor


def _split(name: str) -> tuple[str, str]:
    """Part of the model and the tensor's name in it."""
    part, _, tensor = name.rpartition(".")
    return part, tensor


def _dtype(described: Mapping[str, Any], marker: Path, name: str) -> np.dtype:
    found = described.get("dtype")
    if found not in _DTYPES:
        raise _wrong_dtype(marker, name, found)
    return _DTYPES[found]


def _wrong_dtype(file: Path, name: str, found: object) -> ModelError:
    return ModelError(
        f"{file}: tensor {name!r} has the dtype {found}, expected one of {', '.join(_DTYPES)}"
    )


def _description(folder: Path) -> Mapping[str, Any]:
    marker = folder / ORBAX_MARKER
    description = read_json(marker)
    if description.get("format") != _FORMAT:
        raise ModelError(
            f"{marker}: has format {description.get('format')!r}, this version reads {_FORMAT}; "
            "convert the model again"
        )
    for key in ("config", "tensors"):
        if not isinstance(description.get(key), dict):
            raise ModelError(f"{marker}: expected an object {key!r}")
    return description
