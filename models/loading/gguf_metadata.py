"""A fast reader of a GGUF file's header: key/values and the list of tensors, no tensor data.

The ``gguf`` package's reader parses arrays element by element and needs seconds for a vocabulary;
this one needs tens of milliseconds.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from fjx.errors import ModelError

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_NUMBER_DTYPES = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor lies in the file."""

    name: str
    shape: tuple[int, ...]
    """Sizes in NumPy's order, slowest dimension first (GGUF stores them fastest first)."""
    quantization: GGMLQuantizationType
    offset: int
    """Bytes from the start of the file."""


@dataclass(frozen=True)
class GGUFHeader:
    """Everything in a GGUF file but the tensors' data."""

    metadata: dict[str, Any]
    """Key/values as plain Python values; arrays are lists."""
    tensors: dict[str, GGUFTensor]
    """Tensors by name, in file order."""


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read the key/values and the tensor list of a GGUF file (versions 2 and 3, little-endian).

    Raises:
        ModelError: the file cannot be read, is not GGUF, is truncated or broken; the message names
            it.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ModelError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                return _Cursor(buffer, path).read_header()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


class _Cursor:
    """A position in the header, moved forward by each read."""

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self._buffer = buffer
        self._path = path
        self._position = len(MAGIC)
        self._place = "the header"

    def read_header(self) -> GGUFHeader:
        version = self._uint32()
        if version not in SUPPORTED_VERSIONS:
            raise self._broken(
                f"GGUF version {version} is not supported (versions 2 and 3, little-endian, are)"
            )
        tensor_count, pair_count = self._uint64(), self._uint64()
        metadata: dict[str, Any] = {}
        for index in range(pair_count):
            self._place = f"key/value {index} of {pair_count}"
            key = self._string()
            self._place = f"key {key[:80]!r}"
            metadata[key] = self._value(self._value_type())
        infos = []
        for index in range(tensor_count):
            self._place = f"the description of tensor {index} of {tensor_count}"
            infos.append(self._tensor())
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._broken(f"general.alignment must be a positive integer, got {alignment!r}")
        data_start = -(-self._position // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, quantization, offset in infos:
            if name in tensors:
                raise self._broken(f"tensor '{name}' is there twice")
            tensors[name] = GGUFTensor(name, shape, quantization, data_start + offset)
        return GGUFHeader(metadata, tensors)

    def _tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        self._place = f"the description of tensor {name[:80]!r}"
        dimensions = self._uint32()
        if dimensions > MAX_DIMENSIONS:
            raise self._broken(f"{dimensions} dimensions; at most {MAX_DIMENSIONS} are allowed")
        shape = tuple(self._uint64() for _ in range(dimensions))[::-1]
        number = self._uint32()
        try:
            quantization = GGMLQuantizationType(number)
        except ValueError:
            raise self._broken(f"unknown quantization type {number}") from None
        return name, shape, quantization, self._uint64()

    def _value(self, kind: GGUFValueType, depth: int = 0) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._numbers(kind, 1)[0]
        if depth == MAX_ARRAY_DEPTH:
            raise self._broken("arrays nested too deep")
        element, count = self._value_type(), self._uint64()
        if element == GGUFValueType.STRING:
            return self._strings(count)
        if element == GGUFValueType.ARRAY:
            return [self._value(element, depth + 1) for _ in range(count)]
        return self._numbers(element, count)

    def _numbers(self, kind: GGUFValueType, count: int) -> list[Any]:
        dtype = np.dtype(_NUMBER_DTYPES[kind])
        values: list[Any] = np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
        return values

    def _strings(self, count: int) -> list[str]:
        # The one hot loop: vocabularies and merges are hundreds of thousands of strings.
        buffer, position, unpack = self._buffer, self._position, _U64.unpack_from
        strings = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(buffer, position)[0]
                strings.append(str(buffer[start:position], "utf-8"))
        except (struct.error, OverflowError) as error:
            raise self._truncated() from error
        except UnicodeDecodeError as error:
            if position > len(buffer):
                raise self._truncated() from error
            raise self._broken("text that is not UTF-8") from error
        if position > len(buffer):
            raise self._truncated()
        self._position = position
        return strings

    def _string(self) -> str:
        return self._strings(1)[0]

    def _value_type(self) -> GGUFValueType:
        number = self._uint32()
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self._broken(f"unknown value type {number}") from None

    def _uint32(self) -> int:
        return int(_U32.unpack(self._take(4))[0])

    def _uint64(self) -> int:
        return int(_U64.unpack(self._take(8))[0])

    def _take(self, size: int) -> bytes:
        start, end = self._position, self._position + size
        if end > len(self._buffer):
            raise self._truncated()
        self._position = end
        return self._buffer[start:end]

    def _truncated(self) -> ModelError:
        return self._broken("the file ends too early; it is truncated or not a valid GGUF")

    def _broken(self, what: str) -> ModelError:
        return ModelError(f"{self._path}: {self._place}: {what}")
