"""CPU kernels written in Numba, called by XLA without Python in between.

XLA's foreign function interface calls a C function with a pointer to a *call frame*. Numba
compiles such functions (`numba.cfunc`); here are the few reads of the frame that they need. The
frame's layout is the C ABI of ``xla/ffi/api/c_api.h``, version 0.1, which XLA keeps compatible:
registering fails with a clear error from XLA if it ever does not.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature
from numba.extending import intrinsic

_MAJOR, _MINOR = 0, 1
_METADATA_EXTENSION = 1
_EXECUTE_STAGE = 3
_ARGS, _RESULTS = 5, 10  # 8-byte words from the frame's start


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@numba.njit(inline="always")
def words(address: int, count: int) -> Any:
    """View ``count`` 8-byte words at an address."""
    return numba.carray(_pointer(address), (count,), np.int64)


@numba.njit(inline="always")
def _buffer(frame: int, side: int, index: int) -> Any:
    # XLA_FFI_Buffer: struct_size, extension, dtype, data, rank, dims
    table = words(frame, side + 5)[side + 4]
    return words(words(table, index + 1)[index], 6)


@numba.njit(inline="always")
def argument(frame: int, index: int, dtype: Any) -> Any:
    """Argument ``index`` as a flat array."""
    buffer = _buffer(frame, _ARGS, index)
    return numba.carray(_pointer(buffer[3]), (_size(buffer),), dtype)


@numba.njit(inline="always")
def result(frame: int, index: int, dtype: Any) -> Any:
    """Result ``index`` as a flat array."""
    buffer = _buffer(frame, _RESULTS, index)
    return numba.carray(_pointer(buffer[3]), (_size(buffer),), dtype)


@numba.njit(inline="always")
def view(address: int, count: int, dtype: Any) -> Any:
    """View ``count`` numbers at an address. Nobody owns them: the memory must outlive the view."""
    return numba.carray(_pointer(address), (count,), dtype)


@numba.njit(inline="always")
def dims(frame: int, index: int) -> Any:
    """Shape of argument ``index``."""
    buffer = _buffer(frame, _ARGS, index)
    return words(buffer[5], buffer[4])


@numba.njit(inline="always")
def arguments(frame: int) -> int:
    """How many arguments there are."""
    return words(frame, _ARGS + 3)[_ARGS + 2]


@numba.njit(inline="always")
def element_type(frame: int, index: int) -> int:
    """Type of argument ``index``, as ``XLA_FFI_DataType`` numbers them."""
    return _buffer(frame, _ARGS, index)[2] & 0xFFFFFFFF


@numba.njit(inline="always")
def _size(buffer: Any) -> int:
    size = 1
    for dim in words(buffer[5], buffer[4]):
        size *= dim
    return size


@numba.njit(inline="always")
def only_asks_version(frame: int) -> bool:
    """Tell XLA our ABI version where the call asks for it; True: there is nothing to execute."""
    extension = words(frame, 2)[1]
    if extension != 0 and (words(extension, 2)[1] & 0xFFFFFFFF) == _METADATA_EXTENSION:
        metadata = words(extension, 4)[3]
        # XLA_FFI_Metadata: struct_size, then the version's struct_size, extension, major, minor
        words(metadata, 4)[3] = _MAJOR | (_MINOR << 32)
        return True
    return (words(frame, 5)[4] & 0xFFFFFFFF) != _EXECUTE_STAGE


def register(name: str, function: Callable[[int], int]) -> None:
    """Compile a function of the call frame's address and make it an XLA CPU custom call; once, by
    whichever thread comes first."""
    with _REGISTERING:
        if name in _COMPILED:
            return
        compiled = compile_function(types.int64(types.int64), function)
        new_capsule = ctypes.pythonapi.PyCapsule_New
        new_capsule.restype = ctypes.py_object
        new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        capsule = new_capsule(compiled.address, b"xla._CUSTOM_CALL_TARGET", None)
        jax.ffi.register_ffi_target(name, capsule, platform="cpu", api_version=1)
        _COMPILED[name] = compiled


_REGISTERING = threading.Lock()
_COMPILED: dict[str, Any] = {}


def compile_function(signature: Any, function: Callable[..., Any]) -> Any:
    """Compile a C function, or load it from Numba's cache on disk.

    Numba looks only at the file in which the function stands to tell whether the cache is stale; a
    kernel is made of several, so the stamp covers them all.
    """
    compiled: Any = CFunc(function, normalize_signature(signature), locals={}, options={})
    compiled.enable_caching()
    file = compiled._cache._cache_file
    file._source_stamp = (file._source_stamp, _sources_digest())
    compiled.compile()
    return compiled


@functools.cache
def _sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
