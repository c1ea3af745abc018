"""The compile service: what is compiled, where, and how failures show."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.experimental.compilation_cache.compilation_cache
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.pipeline import compiler as module
from fjx.pipeline.compiler import CompileJob, Compiler, ProgramSpec

PAIR = jax.ShapeDtypeStruct((2,), jnp.float32)


def spec(key: str, factor: float = 2.0) -> ProgramSpec:
    return ProgramSpec(key, lambda x: factor * x, (PAIR,))


MAPPINGS = Path("/proc/self/maps")


def mappings() -> int:
    return MAPPINGS.read_bytes().count(b"\n")


def ones() -> np.ndarray:
    return np.ones(2, np.float32)


def test_programs_compiled_in_warm_up_are_found_on_the_hot_path() -> None:
    compiler = Compiler(cache_dir=None)
    compiler.register([spec("double"), spec("triple", 3.0)])
    compiler.compile_all(progress=False)
    assert compiler.get("triple")(ones()).tolist() == [3, 3]
    assert compiler.get("double")(ones()).tolist() == [2, 2]
    assert compiler.counts == {"warmup": 2}


def test_a_compile_on_the_hot_path_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    compiler = Compiler(cache_dir=None)
    compiler.register([spec("forgotten")])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert compiler.get("forgotten")(ones()).tolist() == [2, 2]
    assert compiler.counts == {"hot_path": 1}
    (record,) = caplog.records
    assert "forgotten" in record.getMessage()


def test_without_warm_up_a_program_is_compiled_when_needed_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    compiler = Compiler(cache_dir=None, on_demand=True)
    compiler.register([spec("wanted"), spec("never")])
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert compiler.get("wanted")(ones()).tolist() == [2, 2]
    assert compiler.counts == {"on_demand": 1}
    assert compiler.compiled_in_steps == 1
    assert caplog.records == []


def test_only_what_is_missing_is_compiled_and_counted_by_place() -> None:
    compiler = Compiler(cache_dir=None)
    compiler.register([spec("first")])
    compiler.compile_all(progress=False)
    compiler.register([spec("second")])
    compiler.compile_all("background", progress=False)
    compiler.compile_all(progress=False)
    assert compiler.counts == {"warmup": 1, "background": 1}


def test_a_program_that_cannot_be_traced_fails_the_warm_up() -> None:
    compiler = Compiler(cache_dir=None)
    compiler.register([spec("good"), ProgramSpec("bad", lambda x: x @ jnp.ones((3, 3)), (PAIR,))])
    with pytest.raises(TypeError, match="shape"):
        compiler.compile_all(progress=False)
    assert compiler.get("good")(ones()).tolist() == [2, 2]


def test_a_compiler_error_in_a_thread_fails_the_warm_up() -> None:
    compiler = Compiler(cache_dir=None)
    wrong = ProgramSpec("bad", lambda x: x, (PAIR,), options={"xla_no_such_option": True})
    compiler.register([spec("good"), wrong])
    with pytest.raises(Exception, match="xla_no_such_option"):
        compiler.compile_all(progress=False)


def test_an_unknown_program_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        Compiler(cache_dir=None).get("nobody")


def test_donated_memory_is_reused() -> None:
    compiler = Compiler(cache_dir=None)
    compiler.register([ProgramSpec("add", lambda x: x + 1, (PAIR,), donate=(0,))])
    x = jnp.ones(2)
    compiler.get("add")(x)
    assert x.is_deleted()


@pytest.fixture
def _cache_as_before() -> Iterator[None]:
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
        "jax_persistent_cache_enable_xla_caches",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


@pytest.mark.usefixtures("_cache_as_before")
def test_a_persistent_cache_is_filled(tmp_path: Path) -> None:
    compiler = Compiler(tmp_path / "new" / "programs")
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    compiler.register([spec("cached", 41.0)])
    compiler.compile_all(progress=False)
    assert list((tmp_path / "new" / "programs").iterdir())


@pytest.mark.usefixtures("_cache_as_before")
def test_what_xla_finds_fastest_is_kept_beside_the_programs(tmp_path: Path) -> None:
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    Compiler(tmp_path)
    options = jax._src.compiler.get_compile_options(num_replicas=1, num_partitions=1)
    kept = options.executable_build_options.debug_options.xla_gpu_per_fusion_autotune_cache_dir
    assert Path(kept).parent == tmp_path


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The keys of programs in the order in which their compilation begins; that of ``gate`` waits
    until the test has queued what it wants."""
    begun: list[str] = []
    compile_ = module._compile

    def noting(spec: ProgramSpec, lowered: Any) -> Any:
        begun.append(str(spec.key))
        if spec.key == "gate":
            assert GATE.wait(60)
        if str(spec.key).startswith("bad"):
            raise RuntimeError(f"{spec.key} cannot be compiled")
        return compile_(spec, lowered)

    monkeypatch.setattr(module, "_compile", noting)
    GATE.clear()
    yield begun
    GATE.set()


GATE = threading.Event()


def behind_the_gate(compiler: Compiler, order: list[str]) -> CompileJob:
    """Keep the background thread busy until `GATE` is set."""
    job = compiler.compile_background([spec("gate")])
    while order != ["gate"]:
        time.sleep(0.001)
    return job


def test_programs_that_are_needed_come_before_those_that_can_wait(order: list[str]) -> None:
    compiler = Compiler(cache_dir=None)
    gate = behind_the_gate(compiler, order)
    later = compiler.compile_background([spec("later"), spec("last")])
    first = compiler.compile_later([spec("needed"), spec("needed, too")])
    assert [job.finished for job in (gate, first, later)] == [False] * 3
    GATE.set()
    compiler.wait_background()
    assert order == ["gate", "needed", "needed, too", "later", "last"]
    assert gate.finished
    assert (first.done, first.total, first.finished) == (2, 2, True)
    assert later.finished
    assert compiler.find("needed")(ones()).tolist() == [2, 2]


def test_a_cancelled_job_begins_no_further_program(order: list[str]) -> None:
    compiler = Compiler(cache_dir=None)
    behind_the_gate(compiler, order)
    cancelled = compiler.compile_later([spec("never"), spec("nor this")])
    goes_on = compiler.compile_background([spec("goes on")])
    cancelled.cancel()
    GATE.set()
    compiler.wait_background()
    assert order == ["gate", "goes on"]
    assert not cancelled.finished
    assert cancelled.error is None
    assert goes_on.finished
    assert compiler.compile_later([spec("afterwards")]) is not None
    compiler.wait_background()
    assert order[-1] == "afterwards"


def test_an_error_ends_its_job_and_no_other(
    order: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Compiler(cache_dir=None)
    behind_the_gate(compiler, order)
    failing = compiler.compile_later([spec("good"), spec("bad one"), spec("not reached")])
    other = compiler.compile_background([spec("other")])
    GATE.set()
    compiler.wait_background()
    assert order == ["gate", "good", "bad one", "other"]
    assert str(failing.error) == "bad one cannot be compiled"
    assert (failing.done, failing.finished) == (1, False)
    assert other.finished
    assert "could not compile bad one" in caplog.text


def test_a_job_of_programs_that_are_there_compiles_nothing(order: list[str]) -> None:
    compiler = Compiler(cache_dir=None)
    compiler.compile_later([spec("double")])
    compiler.wait_background()
    again = compiler.compile_later([spec("double")])
    compiler.wait_background()
    assert again.finished
    assert order == ["double"]
    assert compiler.counts == {"background": 1}
    assert compiler.compile_later([]).finished


def test_what_was_wanted_longest_ago_makes_room() -> None:
    compiler = Compiler(cache_dir=None)
    compiler.max_programs = 3
    compiler.register([spec("start")])
    compiler.compile_all(progress=False)
    compiler.compile_later([spec(name) for name in "abcd"])
    compiler.wait_background()
    assert compiler.is_crowded
    compiler.want(["a"])
    compiler.make_room(keep={"b"})
    assert not compiler.is_crowded
    there = {name for name in ("start", *"abcd") if compiler.find(name) is not None}
    assert there == {"start", "a", "b"}
    job = compiler.compile_later([spec("c")])
    compiler.wait_background()
    assert job.finished
    assert compiler.get("c")(ones()).tolist() == [2, 2]
    assert compiler.counts == {"warmup": 1, "background": 5}


@pytest.mark.skipif(not MAPPINGS.exists(), reason="memory mappings are listed on Linux only")
def test_programs_that_make_room_leave_no_memory_mappings() -> None:
    compiler = Compiler(cache_dir=None)
    compiler.max_programs = 0
    before = mappings()
    # differing constants and sizes, or XLA would share what it has compiled
    compiler.compile_later([spec(f"{i}", 1.5 + i) for i in range(40)])
    compiler.wait_background()
    held = mappings() - before
    assert held > 40
    compiler.make_room(keep=())
    gc.collect()
    assert mappings() - before < held / 4


def test_when_the_interpreter_ends_whoever_waits_for_a_job_learns_it() -> None:
    """Otherwise the thread that waits would keep the interpreter alive for ever."""
    program = """
import threading, time
import jax, jax.numpy as jnp
from fjx.pipeline.compiler import Compiler, ProgramSpec

pair = jax.ShapeDtypeStruct((2,), jnp.float32)
begun = threading.Event()

def slow(x):
    begun.set()
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    return x

job = Compiler(None).compile_later(
    [ProgramSpec("slow", slow, (pair,)), ProgramSpec("never", lambda x: x, (pair,))]
)

def wait():
    while not job.finished and job.error is None:
        time.sleep(0.01)
    print("ended:", job.error)

threading.Thread(target=wait).start()
begun.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "ended: the interpreter ends\n", done.stderr
    assert done.returncode == 0


def test_what_can_wait_waits_while_it_is_held_and_what_is_needed_does_not() -> None:
    compiler = Compiler(cache_dir=None)
    compiler.hold_background(True)
    optional = compiler.compile_background([spec("optional")])
    needed = compiler.compile_later([spec("needed")])
    compiler.wait_background()
    assert (needed.finished, optional.finished) == (True, False)
    compiler.hold_background(False)
    compiler.wait_background()
    assert optional.finished


def test_what_was_traced_is_let_go_once_the_program_is_there() -> None:
    def jaxprs() -> int:
        gc.collect()
        return sum(isinstance(each, jax.extend.core.Jaxpr) for each in gc.get_objects())

    compiler = Compiler(cache_dir=None)
    compiler.register([spec("first")])
    compiler.get("first")
    before = jaxprs()
    compiler.register([spec(f"{i}", float(i)) for i in range(20)])
    for i in range(20):
        compiler.get(f"{i}")
    assert jaxprs() - before < 20
