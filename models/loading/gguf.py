"""The tensors of a GGUF file, dequantized one at a time."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from fjx.errors import ModelError
from fjx.models.loading.gguf_metadata import GGUFTensor, read_gguf_header
from fjx.models.loading.recipes import PIECE_BYTES

# Elements dequantized at once. Temporaries of 512 KiB stay in the processor's cache: four times as
# fast as the gguf package's own way, which goes through a whole tensor in pieces of 16 rows.
_PIECE = 131072


class GGUFStore:
    """A GGUF file of one part, mapped into memory.

    Raises:
        ModelError: the file is not GGUF, is truncated, or is one part of a split file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_gguf_header(path)
        self.metadata = header.metadata
        parts = self.metadata.get("split.count", 1)
        if parts > 1:
            raise ModelError(
                f"{path}: it is one of {parts} parts of a split GGUF file; join them first, with "
                "llama.cpp's 'llama-gguf-split --merge'"
            )
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._tensors = header.tensors
        self._nbytes = {name: self._extent(tensor) for name, tensor in self._tensors.items()}
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def where(self, name: str) -> Path:
        """Return the file that holds tensor `name`."""
        return self.path

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype that `read` gives."""
        return np.dtype(np.float32)

    def nbytes(self, name: str) -> int:
        """Return the bytes of tensor `name` in the file."""
        return self._nbytes[name]

    def read(self, name: str) -> np.ndarray:
        """Return tensor `name` as a new float32 array.

        Raises:
            ModelError: its type is one that the gguf package does not dequantize.
        """
        shape = self._tensors[name].shape
        return self._dequantized(name, 0, self._nbytes[name]).reshape(shape)

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield tensor `name` in runs of rows, each with the number of its first row; see `read`.
        What was read of the file is let go."""
        shape = self._tensors[name].shape
        if len(shape) < 2:
            yield 0, self.read(name)
            return
        row_bytes = self._nbytes[name] // shape[0]
        step = max(1, PIECE_BYTES // (4 * math.prod(shape[1:])))
        for first in range(0, shape[0], step):
            rows = min(step, shape[0] - first)
            values = self._dequantized(name, first * row_bytes, rows * row_bytes)
            yield first, values.reshape(rows, *shape[1:])
        self._let_go(self._tensors[name].offset, self._nbytes[name])

    def _let_go(self, offset: int, size: int) -> None:
        """Have pages of the file that were read leave this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._data.madvise(mmap.MADV_DONTNEED, begin, offset + size - begin)

    def _dequantized(self, name: str, begin: int, size: int) -> np.ndarray:
        """Some bytes of a tensor as float32, by blocks."""
        tensor = self._tensors[name]
        block, block_bytes = GGML_QUANT_SIZES[tensor.quantization]
        raw = np.frombuffer(self._data, np.uint8, size, tensor.offset + begin)
        blocks = raw.reshape(-1, block_bytes)
        out = np.empty((len(blocks), block), np.float32)
        step = _PIECE // block
        try:
            with np.errstate(all="ignore"):  # broken scales show as NaN, which the caller reports
                for start in range(0, len(blocks), step):
                    piece = blocks[start : start + step].reshape(1, -1)
                    values = dequantize(piece, tensor.quantization)
                    out[start : start + step] = values.reshape(-1, block)
        except NotImplementedError:
            raise ModelError(
                f"{self.path}: tensor {name!r} has the type {tensor.quantization.name}, which the "
                "gguf package does not dequantize"
            ) from None
        return out

    def _extent(self, tensor: GGUFTensor) -> int:
        block, block_bytes = GGML_QUANT_SIZES[tensor.quantization]
        if not tensor.shape or tensor.shape[-1] % block:
            raise ModelError(
                f"{self.path}: tensor {tensor.name!r} of shape {tensor.shape} does not hold whole "
                f"{tensor.quantization.name} blocks of {block}"
            )
        nbytes = math.prod(tensor.shape) // block * block_bytes
        end = tensor.offset + nbytes
        if end > len(self._data):
            raise ModelError(
                f"{self.path}: the file is truncated: tensor {tensor.name!r} ends at byte {end}, "
                f"the file has {len(self._data)}"
            )
        return nbytes
