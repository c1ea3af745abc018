"""Work beside the steps that shall not slow them down."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fjx.kernels import host_memory

_NICENESS = 5
_SWITCH_SECONDS = 0.0005
_SOON_SECONDS = 1.0
_M_ARENA_MAX = -8  # of malloc.h


@contextlib.contextmanager
def background_work() -> Iterator[None]:
    """Around all that a thread beside the engine's does.

    The thread, and those that it starts, let others run first, but not by much: where it holds the
    interpreter, the engine waits for it to get a processor. And the interpreter changes hands
    sooner than usual, because a step asks for it many times.
    """
    if sys.platform == "linux":  # elsewhere, priority belongs to the process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    _interval.shorten()
    try:
        yield
    finally:
        _interval.restore()


class _SwitchInterval:
    """The interpreter's switch interval, shorter while anybody wants it so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._usual = 0.0

    def shorten(self) -> None:
        with self._lock:
            if self._users == 0:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual, _SWITCH_SECONDS))
            self._users += 1

    def restore(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                sys.setswitchinterval(self._usual)


_interval = _SwitchInterval()


def keep_heap() -> None:
    """Take all objects that are there now out of the garbage collector's sight.

    A model's programs are several hundred thousand Python objects that stay. Each full collection
    would look at all of them, and nothing else runs meanwhile: 0.2 s with one plan's programs, 0.6
    s with five plans', in the middle of whatever step was under way. What nobody holds is collected
    before, or it would stay until `release_heap`.
    """
    gc.collect()
    gc.freeze()


def release_heap() -> None:
    """Let the garbage collector see again what `keep_heap` took out of its sight: an engine that
    nobody holds any more, and its programs, would stay for good."""
    gc.unfreeze()


def give_back_memory() -> None:
    """Return freed memory to the system: compiling leaves much of it with the allocator."""
    trim = _of_allocator("malloc_trim")
    if trim is not None:
        trim(0)


def give_back_memory_soon() -> None:
    """The same, beside the steps, once what was just let go is no longer in use."""

    def run() -> None:
        time.sleep(_SOON_SECONDS)
        with background_work():
            give_back_memory()

    threading.Thread(target=run, name="fjx-give-back", daemon=True).start()


def share_heaps() -> None:
    """Let threads share few heaps, from before they begin to use them.

    By default glibc has eight for each processor, and keeps in each what was freed there: steps and
    changes of plan, whose arrays come from many threads, would leave them all full.
    """
    limit = _of_allocator("mallopt")
    if limit is not None and "MALLOC_ARENA_MAX" not in os.environ:
        limit(_M_ARENA_MAX, max(2, (os.cpu_count() or 1) // 4))


def _of_allocator(name: str) -> Any | None:
    """A function of glibc's; None: the allocator is another one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def copy_to_device(array: Any, device: jax.Device) -> Any:
    """A copy of an array on a device.

    On a CPU the calling thread copies, at its own priority: XLA's threads would take the time of
    the steps.
    """
    if device.platform != "cpu":
        return jax.device_put(array, device)
    return jax.device_put(host_memory.copied(np.asarray(array)), device)
