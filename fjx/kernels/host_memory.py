"""Arrays of the host whose memory goes back to the system as soon as nobody holds them.

An allocator keeps what is freed for the thread that took it: threads that come and go, each of
which copies a model's parameters, then hold gigabytes of nothing. So large arrays are mapped one by
one. XLA uses them in place on a CPU.
"""

from __future__ import annotations

import math
import mmap
import sys
from typing import Any

import numpy as np

_ALIGNMENT = 64
"""Bytes; what XLA asks of memory on a CPU that it shall use in place."""
_MAPPED = 64 * 1024
"""Bytes from which an array is worth a mapping of its own."""
_NOT_RESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000) if sys.platform == "linux" else 0
"""What is never touched counts as nothing: else Linux refuses to fork a process whose neighbouring
mappings are together larger than the machine's memory."""


def zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that XLA uses in place on a CPU; where an array is large, what is never touched takes
    no memory."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory: np.ndarray
    if size >= _MAPPED:
        memory = np.frombuffer(_mapped(size), np.uint8)
    else:
        memory = np.zeros(size + _ALIGNMENT, np.uint8)
        memory = memory[-memory.ctypes.data % _ALIGNMENT :][:size]
    array: np.ndarray = memory.view(dtype).reshape(shape)
    return array


def copied(array: np.ndarray) -> np.ndarray:
    """A copy, in C order, that XLA uses in place on a CPU."""
    copy = zeros(array.shape, array.dtype)
    # As bytes: copying them lets other threads have the interpreter, whatever the type.
    np.copyto(_bytes(copy), _bytes(np.ascontiguousarray(array)))
    return copy


def in_place(array: np.ndarray) -> np.ndarray:
    """The array itself where XLA can use it in place on a CPU, else a copy that it can."""
    usable = array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT == 0
    return array if usable and not _is_part(array) else copied(array)


def _is_part(array: np.ndarray) -> bool:
    """Whether it keeps a larger array's memory alive."""
    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    return whole.nbytes > array.nbytes + _ALIGNMENT


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _mapped(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_PRIVATE"):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NOT_RESERVED
        return mmap.mmap(-1, size, flags=flags)
    return mmap.mmap(-1, size)
