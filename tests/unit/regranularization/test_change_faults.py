"""Whatever goes wrong while a plan changes: the old plan serves on, nothing leaks, and the next
change succeeds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fjx.pipeline.compiler as compiler
import fjx.pipeline.free_memory as free_memory
import fjx.regranularization.change as regranularize
import fjx.regranularization.in_process as in_process
from fjx.engine.engine import Engine
from fjx.errors import MemoryFitError, MeshError, RegranularizationBusyError
from fjx.outputs import SwitchRecord
from fjx.regranularization.transfer import PageMover
from fjx.sharding.plan.plan import Deployment, Device, Mesh, Plan, Stage
from tests.unit.engine.plan_cases import (
    MIXED,
    PATIENCE,
    Served,
    answers,
    change,
    change_threads,
    deep_engine,
    even,
    expected,
    finish_change,
    live_bytes,
    shared,
)
from tests.unit.engine.tiny import run, staged

TARGET = shared((4, (0,)), (4, (1,)))
"""Half of the granules stay, half move."""
OTHER_DEGREE = shared((4, (0,)), (4, (0, 1)))
GREEDY = tuple(ask for ask in MIXED if not ask.params.temperature)
EXHAUSTED = "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes"


@cache
def changing() -> Engine:
    """An engine that has been to every plan of these tests, so that all programs are there."""
    engine = deep_engine(num_pages=33)
    for ask in MIXED:
        expected(ask)
    for target in (TARGET, OTHER_DEGREE, even(1)):
        change(engine, target)
    return engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = changing()
    yield engine
    finish_change(engine)
    change(engine, even(1))
    run(engine)


def attempt(engine: Engine, spoil: Callable[[], None], target: Any = TARGET) -> SwitchRecord:
    """Begin a change of plan with requests in flight, which must be aborted and harm nothing."""
    before = live_bytes()
    plan, executors = engine.plans.deployment, [each.executor for each in engine.replicas]
    served = Served(engine, MIXED)
    served.step(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regranularize, "_SLICE_BYTES", 1)
        engine.regranularize(target)
        spoil()
        engine.plans.wait(PATIENCE)
        while engine.plans.active:
            served.step()
    assert engine.has_work, "the requests were to be in flight all the time"
    assert_right(served.finish())
    assert engine.plans.deployment == plan
    assert [each.executor for each in engine.replicas] == executors
    engine.check_idle()
    assert change_threads() == []
    assert live_bytes() == before
    record = engine.plans.status().last
    assert record is not None
    assert record.state == "aborted"
    assert record.error is not None
    assert record.pause_seconds is None
    return record


def assert_right(got: list[Any]) -> None:
    for ask, answer in zip(MIXED, got, strict=True):
        assert answer == expected(ask), ask


def nothing() -> None:
    """Spoil nothing when the change has begun; it was done before."""


def assert_next_change_succeeds(engine: Engine, target: Plan = TARGET) -> None:
    record = change(engine, target)
    assert record.after == engine.plans.deployment == Deployment((target,))
    if target == TARGET:
        assert_right(answers(engine, MIXED))
    else:  # another tensor degree adds in another order
        assert [len(got.tokens) for got in answers(engine, GREEDY)] == [48] * len(GREEDY)
        engine.check_idle()


def fail(*_: Any, **__: Any) -> Any:
    raise jax.errors.JaxRuntimeError(EXHAUSTED)


def fail_late(original: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """The function, until it was called this often."""
    left = [calls]

    def function(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        return fail() if left[0] < 0 else original(*arguments, **named)

    return function


@pytest.mark.parametrize("target", [TARGET, OTHER_DEGREE], ids=["same degree", "other degree"])
@pytest.mark.parametrize("pieces", [0, 3])
def test_no_memory_for_parameters(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    pieces: int,
    target: Plan,
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(in_process, "move_params", fail_late(in_process.move_params, pieces))
        record = attempt(engine, nothing, target)
    assert record.error == EXHAUSTED
    assert "copying" in record.seconds
    assert f"aborted while copying: {EXHAUSTED}; the old plan serves on" in caplog.text
    assert_next_change_succeeds(engine, target)


@pytest.mark.parametrize("target", [TARGET, OTHER_DEGREE], ids=["same degree", "other degree"])
@pytest.mark.parametrize("copies", [0, 2])
def test_no_memory_for_pages(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, copies: int, target: Plan
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PageMover, "copy", fail_late(PageMover.copy, copies))
        record = attempt(engine, nothing, target)
    assert record.error == EXHAUSTED
    assert record.parameter_bytes > 0
    assert (record.kv_bytes > 0) == (copies > 0)
    assert_next_change_succeeds(engine, target)


def test_no_memory_for_the_last_pages(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(PageMover, "wait", fail)
        record = attempt(engine, nothing)
    assert record.error == EXHAUSTED
    assert "switching" in record.seconds
    assert f"aborted while switching: {EXHAUSTED}" in caplog.text
    assert_next_change_succeeds(engine)


def test_a_program_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = deep_engine(num_pages=36)
    answers(engine, MIXED)
    compile_ = compiler._compile

    def failing(spec: Any, lowered: Any) -> Any:
        if spec.key[0] == "put":
            raise RuntimeError("the compiler has no idea")
        return compile_(spec, lowered)

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "_compile", failing)
        record = attempt(engine, nothing)
    assert record.error == "a program did not compile: the compiler has no idea"
    assert record.parameter_bytes == 0
    assert_next_change_succeeds(engine)
    change(engine, even(1))


def test_logits_that_are_not_finite(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    move_params = in_process.move_params

    def spoiled(*arguments: Any) -> Any:
        moved, size = move_params(*arguments)
        return jax.tree.map(as_nan, moved), size

    with monkeypatch.context() as patch:
        patch.setattr(in_process, "move_params", spoiled)
        record = attempt(engine, nothing)
    assert "replica 1 of the new plan gave logits that are not finite" in str(record.error)
    assert record.kv_bytes == 0
    assert_next_change_succeeds(engine)


def as_nan(leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jax.device_put(np.full(leaf.shape, np.nan, leaf.dtype), leaf.sharding)


def test_other_logits(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    move_params = in_process.move_params

    def exchanged(programs: Any, piece: str, params: Any, *places: Any) -> Any:
        """The last granule gets the parameters of another one."""
        if piece == "7":
            params = engine.executor.pieces.granules[0].params
        return move_params(programs, piece, params, *places)

    with monkeypatch.context() as patch:
        patch.setattr(in_process, "move_params", exchanged)
        record = attempt(engine, nothing)
    assert "replica 1 of the new plan gave other logits in its test step" in str(record.error)
    assert_next_change_succeeds(engine)


def test_the_probe_itself_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(in_process, "run_probe", fail_late(in_process.run_probe, 0))
        record = attempt(engine, nothing)
    assert record.error == EXHAUSTED
    assert_next_change_succeeds(engine)


# Somebody aborts it.


def test_abort_at_once(engine: Engine) -> None:
    record = attempt(engine, lambda: abort(engine))
    assert record.error == "the test wants it"
    assert record.moved_bytes == 0 or record.kv_bytes == 0
    assert_next_change_succeeds(engine)


def abort(engine: Engine) -> None:
    assert engine.plans.abort("the test wants it")
    engine.plans.abort("a second reason does not count")


def test_abort_while_programs_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = deep_engine(num_pages=37)
    answers(engine, MIXED)
    compiling, go_on = threading.Event(), threading.Event()
    compile_ = compiler._compile

    def slow(spec: Any, lowered: Any) -> Any:
        compiling.set()
        assert go_on.wait(PATIENCE)
        return compile_(spec, lowered)

    def spoil() -> None:
        assert compiling.wait(PATIENCE)
        assert engine.plans.status().state == "compiling"
        abort(engine)

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "_compile", slow)
        record = attempt(engine, spoil)  # ends although the compiler is still busy
        go_on.set()
        engine.executor.compiler.wait_background()
    assert record.error == "the test wants it"
    assert set(record.seconds) == {"planned", "compiling"}
    assert record.parameter_bytes == 0
    assert_next_change_succeeds(engine)
    change(engine, even(1))


def test_abort_while_parameters_are_copied(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    copying, go_on = threading.Event(), threading.Event()
    move_params = in_process.move_params

    def slow(*arguments: Any) -> Any:
        copying.set()
        assert go_on.wait(PATIENCE)
        return move_params(*arguments)

    def spoil() -> None:
        assert copying.wait(PATIENCE)
        assert engine.plans.status().state == "copying"
        abort(engine)
        go_on.set()

    with monkeypatch.context() as patch:
        patch.setattr(in_process, "move_params", slow)
        record = attempt(engine, spoil)
    assert record.error == "the test wants it"
    assert record.kv_bytes == 0
    assert_next_change_succeeds(engine)


@pytest.mark.parametrize("target", [TARGET, OTHER_DEGREE], ids=["same degree", "other degree"])
def test_abort_while_pages_are_copied(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, target: Plan
) -> None:
    copy = PageMover.copy

    def copy_and_abort(self: PageMover, pages: Any) -> None:
        copy(self, pages)
        abort(engine)

    with monkeypatch.context() as patch:
        patch.setattr(PageMover, "copy", copy_and_abort)
        record = attempt(engine, nothing, target)
    assert record.error == "the test wants it"
    assert record.kv_bytes > 0
    assert 0 < record.progress < 1
    assert_next_change_succeeds(engine, target)


def test_abort_comes_too_late_when_the_switch_has_begun(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = PageMover.wait

    def abort_and_wait(self: PageMover) -> None:
        abort(engine)
        wait(self)

    served = Served(engine, MIXED)
    served.step(4)
    with monkeypatch.context() as patch:
        patch.setattr(PageMover, "wait", abort_and_wait)
        record = change_while(served, TARGET)
    assert (record.state, record.error, record.progress) == ("done", None, 1.0)
    assert_right(served.finish())
    assert engine.plans.deployment == Deployment((TARGET,))


def change_while(served: Served, target: Any) -> SwitchRecord:
    """Change the plan while requests are served."""
    served.engine.regranularize(target)
    served.engine.plans.wait(PATIENCE)
    while served.engine.plans.active:
        served.step()
    record = served.engine.plans.status().last
    assert record is not None
    return record


def test_abort_without_a_change_says_so(engine: Engine) -> None:
    assert not engine.plans.abort("nothing to abort")


def test_shutdown_ends_a_change_and_lets_go_of_its_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = live_bytes()
    engine.regranularize(TARGET)
    engine.plans.close("the engine was shut down")
    record = engine.plans.status().last
    assert record is not None
    assert (record.state, record.error) == ("aborted", "the engine was shut down")
    assert change_threads() == []
    assert not engine.plans.active
    assert live_bytes() == before
    assert_next_change_succeeds(engine)


# What is refused, before anything begins.


def assert_refused(engine: Engine, target: Any, error: type[Exception], message: str) -> None:
    before, plan = live_bytes(), engine.plans.deployment
    with pytest.raises(error, match=message):
        engine.regranularize(target)
    assert not engine.plans.active
    assert engine.plans.deployment == plan
    assert change_threads() == []
    assert live_bytes() == before


def test_a_second_change_while_one_is_under_way(engine: Engine) -> None:
    engine.regranularize(TARGET)
    with pytest.raises(RegranularizationBusyError, match="wait for it or abort it"):
        engine.regranularize(even(1))
    assert finish_change(engine).state == "done"
    assert_right(answers(engine, MIXED))


def test_too_little_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 1000 kB\nMemAvailable: 10 kB\n")
    with monkeypatch.context() as patch:
        patch.setattr(free_memory, "_MEMINFO", meminfo)
        assert_refused(engine, TARGET, MemoryFitError, "10.0 KiB|10 KiB|10,240")
        change(engine, even(1))  # moves nothing, needs nothing
    assert_next_change_succeeds(engine)


NOWHERE = Mesh((Device("localhost", "cpu", 8),))
BAD_TARGETS: dict[str, tuple[Any, str]] = {
    "no stage": (0, "stage"),
    "fewer than no stage": (-1, "stage"),
    "more stages than granules": (9, "9|8"),
    "an unknown mesh": ("no-such-mesh", "no-such-mesh"),
    "not a number": (True, "whole number, got True"),
    "a device that is not there": (Plan((Stage(range(8), NOWHERE),)), "cpu:8"),
    "a tensor degree that does not divide": (staged((8, (0, 1, 2))), "degree 3"),
    "too few granules": (staged((7, (0,))), "7 granules.* 8"),
    "a plan that is not one": ({"replicas": []}, "replica"),
    "an unknown field": ({"replicas": [], "size": 1}, "size"),
}


@pytest.mark.parametrize("case", BAD_TARGETS)
def test_a_bad_target(engine: Engine, case: str) -> None:
    target, message = BAD_TARGETS[case]
    assert_refused(engine, target, MeshError, message)


def test_requests_are_served_while_nothing_has_begun_yet(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change waits for its thread without holding up a step."""
    go_on = threading.Event()
    move_params = in_process.move_params

    def slow(*arguments: Any) -> Any:
        assert go_on.wait(PATIENCE)
        return move_params(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(in_process, "move_params", slow)
        engine.regranularize(Deployment((TARGET,)))
        assert_right(answers(engine, MIXED))
        assert engine.plans.active
        go_on.set()
        assert finish_change(engine).state == "done"
