"""Arrays of the host that XLA uses in place, and whose memory goes back."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from fjx.kernels import host_memory
from tests.unit.resident import on_linux, resident

MIB = 1 << 20


@pytest.mark.parametrize("shape", [(3,), (0,), (), (5, 7), (300, 500)])
@pytest.mark.parametrize("dtype", [np.float32, np.int8, ml_dtypes.bfloat16])
def test_zeros_are_zeros_that_xla_uses_in_place(shape: tuple[int, ...], dtype: type) -> None:
    array = host_memory.zeros(shape, dtype)
    assert array.shape == shape
    assert array.dtype == np.dtype(dtype)
    assert not array.astype(np.float32).any()
    if array.size:
        placed = jax.device_put(array)
        assert placed.unsafe_buffer_pointer() == array.ctypes.data


@pytest.mark.parametrize("size", [7, 200_000])
def test_a_copy_has_the_values_and_is_in_c_order(size: int) -> None:
    array = np.arange(2 * size, dtype=np.float32).reshape(2, size).T
    copy = host_memory.copied(array)
    assert copy.flags.c_contiguous
    assert not np.shares_memory(copy, array)
    assert (copy == array).all()


def test_what_can_be_used_in_place_is_not_copied() -> None:
    array = host_memory.zeros((4, 300_000), np.float32)
    assert host_memory.in_place(array) is array
    assert host_memory.in_place(array.T) is not array.T


def test_a_part_is_copied_so_that_the_whole_can_go() -> None:
    whole = host_memory.zeros((8, 300_000), np.float32)
    part = whole[:1]
    assert not np.shares_memory(host_memory.in_place(part), whole)


@on_linux
def test_memory_that_is_not_touched_is_not_taken_and_what_is_let_go_goes_back() -> None:
    before = resident()
    array = host_memory.zeros((256 * MIB,), np.uint8)
    assert resident() - before < 16 * MIB
    array[: 128 * MIB] = 1
    assert resident() - before > 112 * MIB
    del array
    assert resident() - before < 16 * MIB


@on_linux
def test_what_is_never_touched_keeps_no_process_from_a_fork() -> None:
    # Linux takes neighbouring mappings for one. The kernel's fork, not vfork: hence preexec_fn.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    script = (
        "import subprocess\n"
        "from fjx.kernels import host_memory\n"
        f"held = [host_memory.zeros(({memory // 4},), 'uint8') for _ in range(6)]\n"
        "subprocess.run(['true'], preexec_fn=lambda: None, check=True)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
