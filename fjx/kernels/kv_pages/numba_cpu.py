"""Pages moved by Numba functions on a CPU: XLA would copy all of the KV memory to write a page."""

from __future__ import annotations

import mmap
import sys

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Array, Int32
from numba import types

from fjx.kernels.xla_ffi import argument, dims, only_asks_version, register, result

_GIVES_ZEROS = sys.platform == "linux"
"""Whether the system gives zeros for what it took back by `_MADV_DONTNEED`."""
_MADV_DONTNEED = 4
_SYSTEM_PAGE = mmap.PAGESIZE

madvise = types.ExternalFunction("madvise", types.int32(types.int64, types.int64, types.int32))
memset = types.ExternalFunction("memset", types.int64(types.int64, types.int32, types.int64))
memcpy = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))


def new_pages(shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """See `fjx.kernels.kv_pages.api.new_pages`."""
    register("fjx_new_pages", _new_kernel)
    call = jax.ffi.ffi_call("fjx_new_pages", jax.ShapeDtypeStruct(shape, dtype))
    pages: Array = call(jnp.array([jnp.dtype(dtype).itemsize], jnp.int32))
    return pages


def take_pages(kv_pages: Array, pages: Int32[Array, " N"]) -> Array:
    """See `fjx.kernels.kv_pages.api.take_pages`."""
    register("fjx_take_pages", _take_kernel)
    shape = (kv_pages.shape[0], pages.shape[0], *kv_pages.shape[2:])
    call = jax.ffi.ffi_call("fjx_take_pages", jax.ShapeDtypeStruct(shape, kv_pages.dtype))
    taken: Array = call(kv_pages, pages, _item_bytes(kv_pages))
    return taken


def put_pages(kv_pages: Array, pages: Int32[Array, " N"], contents: Array) -> Array:
    """See `fjx.kernels.kv_pages.api.put_pages`."""
    register("fjx_put_pages", _put_kernel)
    call = jax.ffi.ffi_call(
        "fjx_put_pages",
        jax.ShapeDtypeStruct(kv_pages.shape, kv_pages.dtype),
        input_output_aliases={0: 0},
    )
    put: Array = call(kv_pages, pages, _item_bytes(kv_pages), contents)
    return put


def _item_bytes(kv_pages: Array) -> Array:
    return jnp.array([kv_pages.dtype.itemsize], jnp.int32)


@numba.njit(inline="always")
def _page_bytes(frame):
    shape = dims(frame, 0)
    return shape[2] * shape[3] * shape[4] * shape[5] * argument(frame, 2, np.int32)[0]


@numba.njit(inline="always")
def _zero(begin, size):
    """Make memory zeros; whole pages of it are the system's until they are touched."""
    end = begin + size
    first, last = -(-begin // _SYSTEM_PAGE) * _SYSTEM_PAGE, end // _SYSTEM_PAGE * _SYSTEM_PAGE
    given = _GIVES_ZEROS and first < last
    if not (given and madvise(first, last - first, _MADV_DONTNEED) == 0):
        first, last = end, end
    memset(begin, 0, first - begin)
    memset(last, 0, end - last)


def _new_kernel(frame: int) -> int:
    if not only_asks_version(frame):
        size = argument(frame, 0, np.int32)[0]
        pages = result(frame, 0, np.uint8)
        _zero(pages.ctypes.data, len(pages) * size)
    return 0


def _take_kernel(frame: int) -> int:
    if not only_asks_version(frame):
        shape, pages, size = dims(frame, 0), argument(frame, 1, np.int32), _page_bytes(frame)
        memory = argument(frame, 0, np.uint8).ctypes.data
        taken = result(frame, 0, np.uint8).ctypes.data
        for layer in range(shape[0]):
            for i in range(len(pages)):
                page = memory + (layer * shape[1] + pages[i]) * size
                memcpy(taken + (layer * len(pages) + i) * size, page, size)
    return 0


def _put_kernel(frame: int) -> int:
    if not only_asks_version(frame):
        shape, pages, size = dims(frame, 0), argument(frame, 1, np.int32), _page_bytes(frame)
        memory = result(frame, 0, np.uint8).ctypes.data
        contents = argument(frame, 3, np.uint8).ctypes.data
        for layer in range(shape[0]):
            for i in range(len(pages)):
                page = memory + (layer * shape[1] + pages[i]) * size
                memcpy(page, contents + (layer * len(pages) + i) * size, size)
    return 0
