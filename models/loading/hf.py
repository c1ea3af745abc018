"""The tensors of a Hugging Face folder: model.safetensors, or shards with an index."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from fjx.errors import ModelError
from fjx.models.loading.recipes import PIECE_BYTES, one_line

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class SafetensorsStore:
    """All tensors of a folder's safetensors files, mapped into memory.

    Raises:
        ModelError: a file is missing, truncated or broken, or the index contradicts the shards.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # As Transformers: a whole file counts; an index beside it is left over from earlier.
        sharded = (folder / INDEX_FILE).is_file() and not (folder / SINGLE_FILE).is_file()
        self.path = folder / (INDEX_FILE if sharded else SINGLE_FILE)
        self._shards: dict[str, Any] = {}
        self._shard_of = self._locate() if sharded else self._single()
        self._dtypes: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, shard in self._shard_of.items():
            header = self._shards[shard].get_slice(name)
            self.shapes[name] = tuple(header.get_shape())
            self._dtypes[name] = header.get_dtype()

    def where(self, name: str) -> Path:
        """Return the file that holds tensor `name`."""
        return self._folder / self._shard_of[name]

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype of tensor `name`.

        Raises:
            ModelError: it is none of float32, float16 and bfloat16.
        """
        found = self._dtypes[name]
        if found not in _DTYPES:
            raise ModelError(
                f"{self.where(name)}: tensor {name!r} has the dtype {found}, expected one of "
                f"{', '.join(_DTYPES)}"
            )
        return _DTYPES[found]

    def nbytes(self, name: str) -> int:
        """Return the bytes of tensor `name` in the file."""
        return int(np.prod(self.shapes[name], dtype=np.int64)) * self.dtype(name).itemsize

    def read(self, name: str) -> np.ndarray:
        """Return a copy of tensor `name` in its own dtype."""
        with self._opened(name) as shard:
            array: np.ndarray = shard.get_tensor(name)
            return array

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield tensor `name` in runs of rows, each with the number of its first row."""
        shape = self.shapes[name]
        if len(shape) < 2 or not shape[0]:
            yield 0, self.read(name)
            return
        step = max(1, PIECE_BYTES // max(1, self.nbytes(name) // shape[0]))
        with self._opened(name) as shard:
            rows = shard.get_slice(name)
            for first in range(0, shape[0], step):
                yield first, rows[first : min(first + step, shape[0])]

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """The shard of a tensor. Opened anew: its file is mapped, and what was read of it would
        stay in this process's memory."""
        try:
            with safe_open(self.where(name), framework="np") as shard:
                yield shard
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self.where(name)}: cannot read tensor {name!r}: {error}") from None

    def _single(self) -> dict[str, str]:
        if not self.path.is_file():
            raise ModelError(
                f"{self._folder}: no weights: expected {SINGLE_FILE} or {INDEX_FILE} (PyTorch's "
                ".bin files are not read; save the model again with Transformers)"
            )
        return dict.fromkeys(self._open(SINGLE_FILE), SINGLE_FILE)

    def _locate(self) -> dict[str, str]:
        """Open every shard; return the shard of every tensor."""
        shard_of = read_json(self.path).get("weight_map")
        if not isinstance(shard_of, dict) or not all(isinstance(v, str) for v in shard_of.values()):
            raise ModelError(f"{self.path}: expected an object 'weight_map' from tensors to files")
        held = {shard: self._open(shard) for shard in sorted(set(shard_of.values()))}
        for name, shard in shard_of.items():
            if name not in held[shard]:
                raise ModelError(
                    f"{self._folder / shard}: tensor {name!r} is missing; {INDEX_FILE} says that "
                    "it is here"
                )
        return shard_of

    def _open(self, shard: str) -> set[str]:
        path = self._folder / shard
        if not path.is_file():
            raise ModelError(f"{path}: the file is missing; {INDEX_FILE} names it")
        try:
            opened: Any = safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: truncated or not a safetensors file: {one_line(error)}"
            ) from None
        self._shards[shard] = opened
        return set(opened.keys())


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ModelError: the file cannot be read, or is not that.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
