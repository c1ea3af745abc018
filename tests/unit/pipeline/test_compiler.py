"""The compile service: what is compiled, where, and how failures show."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import jax.experimental.compilation_cache.compilation_cache
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.pipeline.compiler import Compiler, ProgramSpec

PAIR = jax.ShapeDtypeStruct((2,), jnp.float32)


def spec(key: str, factor: float = 2.0) -> ProgramSpec:
    return ProgramSpec(key, lambda x: factor * x, (PAIR,))


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


def test_a_persistent_cache_is_filled(tmp_path: Path) -> None:
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    try:
        compiler = Compiler(tmp_path / "new" / "programs")
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
        compiler.register([spec("cached", 41.0)])
        compiler.compile_all(progress=False)
        assert list((tmp_path / "new" / "programs").iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
