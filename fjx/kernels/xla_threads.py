"""Sharing a CPU kernel's work between XLA's threads.

A kernel cuts its work into numbered parts and puts what a part needs into a *block* of memory.
Threads claim parts from the block's counter until none is left; the calling thread claims parts
like the others and returns when all are done. So a kernel never waits for a thread that has not
begun: where the pool is busy, or there is none, the calling thread does everything itself. A thread
that comes late finds no part left; the last one to leave frees the block.

Source of the structures: ``xla/ffi/api/c_api.h``, version 0.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fjx.kernels.xla_ffi import compile_function, words

_API, _CONTEXT = 2, 3  # 8-byte words from the frame's start
_DESTROY_ERROR, _SCHEDULE, _COUNT_THREADS = 8, 17, 18  # words from the start of the API's table
_NEXT, _DONE, _TOTAL, _HOLDERS, _CALL = 0, 1, 2, 3, 4  # words of a block; a call has five
_ARGUMENTS = 9
_PATIENCE = 2000  # looks at the counter before the core is offered to another thread

_WORD = ir.IntType(64)

malloc = types.ExternalFunction("malloc", types.int64(types.int64))
free = types.ExternalFunction("free", types.void(types.int64))
sched_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def _add(typing_context: Any, address: Any, amount: Any) -> Any:
    """Add to a word that several threads write; gives the value before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _WORD.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _load(typing_context: Any, address: Any) -> Any:
    """Read a word that several threads write."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _WORD.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def _call(typing_context: Any, function: Any, argument: Any) -> Any:
    """Call a C function by its address, with one word; gives one word."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = builder.inttoptr(args[0], ir.FunctionType(_WORD, [_WORD]).as_pointer())
        return builder.call(function, [args[1]])

    return types.int64(types.int64, types.int64), generate


def symbol_address(symbol: str) -> Any:
    """A function, for use in kernels, that gives the address of a task; see `register_task`.

    By name, because compiled kernels are kept on disk and addresses change.
    """

    @intrinsic
    def address(typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            task = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), [_WORD]), symbol
            )
            return builder.ptrtoint(task, _WORD)

        return types.int64(), generate

    return address


def register_task(symbol: str, function: Callable[[int], None]) -> None:
    """Compile a function of a block's address under a name, once; before the kernels that use
    it."""
    if symbol not in _TASKS:
        _TASKS[symbol] = compile_function(types.void(types.int64), function)
        llvmlite.binding.add_symbol(symbol, _TASKS[symbol].address)


_TASKS: dict[str, Any] = {}


class TaskTable:
    """Tasks by number, for a kernel that learns only when it is called which one it needs; so only
    those in use are compiled."""

    def __init__(self, symbol: str, count: int) -> None:
        self._addresses = np.zeros(count, np.int64)
        llvmlite.binding.add_symbol(symbol, self._addresses.ctypes.data)

    def register(self, number: int, symbol: str, function: Callable[[int], None]) -> None:
        """See `register_task`."""
        register_task(symbol, function)
        self._addresses[number] = _TASKS[symbol].address


@numba.njit(inline="always")
def do_share(task: int, block: int) -> None:
    """Run a task in the calling thread."""
    _add(block + 8 * _HOLDERS, 1)
    _call(task, block)


@numba.njit(inline="always")
def new_block(parts: int, arguments: int) -> int:
    """The address of a block for ``parts`` parts, with room for ``arguments`` words of
    arguments."""
    block: int = malloc(8 * (_ARGUMENTS + arguments))
    head = words(block, _ARGUMENTS)
    head[_NEXT], head[_DONE], head[_TOTAL], head[_HOLDERS] = 0, 0, parts, 1
    return block


@numba.njit(inline="always")
def block_arguments(block: int, count: int) -> Any:
    """View a block's words of arguments."""
    return words(block + 8 * _ARGUMENTS, count)


@numba.njit(inline="always")
def claim(block: int) -> int:
    """The number of a part that is now the caller's to do, or -1: none is left."""
    part: int = _add(block + 8 * _NEXT, 1)
    return part if part < words(block, _ARGUMENTS)[_TOTAL] else -1


@numba.njit(inline="always")
def finish(block: int) -> None:
    """Say that a claimed part is done."""
    _add(block + 8 * _DONE, 1)


@numba.njit(inline="always")
def release(block: int) -> None:
    """Leave a block; the last one frees it."""
    if _add(block + 8 * _HOLDERS, -1) == 1:
        free(block)


@numba.njit
def invite(frame: int, task: int, block: int) -> None:
    """Ask XLA's threads to run a task on a block; the caller must then do its own share."""
    api = words(words(frame, 5)[_API], 19)
    head = words(block, _ARGUMENTS)
    threads = 1
    call = head[_CALL:]
    # XLA_FFI_ThreadPool_NumThreads_Args: struct_size, extension, context, address of the result
    call[0], call[1], call[2], call[3] = 32, 0, words(frame, 5)[_CONTEXT], block + 8 * (_CALL + 4)
    error = _call(api[_COUNT_THREADS], block + 8 * _CALL)
    if error == 0:
        threads = call[4]
    helpers = min(threads, head[_TOTAL]) - 1
    for _ in range(helpers):
        if error != 0:
            break
        _add(block + 8 * _HOLDERS, 1)
        # XLA_FFI_ThreadPool_Schedule_Args: struct_size, extension, context, task, data
        call[0], call[3], call[4] = 40, task, block
        error = _call(api[_SCHEDULE], block + 8 * _CALL)
        if error != 0:
            _add(block + 8 * _HOLDERS, -1)
    if error != 0:  # XLA_FFI_Error_Destroy_Args: struct_size, extension, error
        call[0], call[1], call[2] = 24, 0, error
        _call(api[_DESTROY_ERROR], block + 8 * _CALL)


@numba.njit
def wait(block: int) -> None:
    """Wait until every part is done, then leave the block."""
    total = words(block, _ARGUMENTS)[_TOTAL]
    looks = 0
    while _load(block + 8 * _DONE) < total:
        looks += 1
        if looks % _PATIENCE == 0:
            sched_yield()
    release(block)
