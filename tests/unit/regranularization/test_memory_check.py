"""Whether two plans fit into memory side by side: with numbers, before anything is copied."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import fjx.pipeline.free_memory as free_memory
from fjx.engine.engine import Engine
from fjx.errors import MemoryFitError, MeshError
from fjx.pipeline.bound_mesh import live_devices
from fjx.pipeline.placed_model import piece_bytes
from fjx.regranularization.memory_check import check_fits
from fjx.sharding.plan.plan import Deployment, Device, Mesh, Plan, Stage
from tests.unit.engine.plan_cases import deep_engine, even, shared


@cache
def engine() -> Engine:
    return deep_engine(num_pages=33)


@pytest.fixture
def meminfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    monkeypatch.setattr(free_memory, "_MEMINFO", path)
    monkeypatch.setattr(free_memory, "_CGROUPS", tmp_path / "none")
    return path


def check(*plans: Plan, pages: int = 33) -> None:
    executors = [each.executor for each in engine().replicas]
    check_fits(executors, Deployment(plans), live_devices(), [pages] * len(executors))


def with_free(meminfo: Path, kib: int) -> None:
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable:   {kib} kB\n")


def kib_of(*pieces: str, pages: int = 33) -> int:
    """Memory of pieces, rounded up."""
    programs, at = engine().executor.programs, engine().executor.pieces.embed.placement
    return -(-sum(piece_bytes(programs, piece, at, pages) for piece in pieces) // 1024)


def test_piece_bytes_are_those_of_the_arrays() -> None:
    executor = engine().executor
    at = executor.pieces.embed.placement
    total = sum(piece_bytes(executor.programs, piece, at) for piece in executor.programs.pieces)
    assert total == sum(array.nbytes for array in executor.pieces.arrays())


def test_pieces_that_stay_need_nothing(meminfo: Path) -> None:
    with_free(meminfo, 0)
    check(even(1))


def test_what_moves_must_fit_to_the_last_page(meminfo: Path) -> None:
    needed = kib_of("4", "5", "6", "7", "head")
    with_free(meminfo, needed)
    check(even(2))
    with_free(meminfo, needed - 1)
    with pytest.raises(MemoryFitError, match=r"CPU devices together need .* are free; use a plan"):
        check(even(2))


def test_pages_that_hold_nothing_need_no_memory_of_a_cpu(meminfo: Path) -> None:
    needed = kib_of("4", "5", "6", "7", "head", pages=5)
    with_free(meminfo, needed)
    check(even(2), pages=5)
    with pytest.raises(MemoryFitError):
        check(even(2), pages=6)


def test_each_new_replica_needs_the_whole_model(meminfo: Path) -> None:
    needed = kib_of(*engine().executor.programs.pieces, pages=0)
    with_free(meminfo, needed)
    check(even(1), even(1, first_device=1))
    with_free(meminfo, 2 * needed - 2)
    with pytest.raises(MemoryFitError):
        check(even(1), even(1, first_device=1), even(2, first_device=2))


def test_a_stage_of_several_devices_splits_the_memory(meminfo: Path) -> None:
    whole = kib_of(*engine().executor.programs.pieces)
    # Norms lie on both devices, the rest is split.
    with_free(meminfo, whole + 64)
    check(shared((8, (2, 3))))


def test_a_host_that_does_not_say_what_is_free_is_not_asked(meminfo: Path) -> None:
    check(even(8))  # there is no such file
    meminfo.write_text("MemTotal: 5 kB\n")
    check(even(8))


def test_a_device_that_is_not_there(meminfo: Path) -> None:
    nowhere = Mesh((Device("elsewhere", "cpu", 0),))
    with pytest.raises(MeshError, match="elsewhere/cpu:0"):
        check(Plan((Stage(range(8), nowhere),)))
