"""`fjx.AsyncLLM` while the plan changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

import fjx.regranularization.in_process as in_process
from fjx.async_llm import AsyncLLM
from fjx.engine.engine import Engine
from fjx.errors import (
    EngineDeadError,
    MeshError,
    RegranularizationBusyError,
    RegranularizationError,
)
from tests.unit.async_cases import (
    GREEDY,
    LIMIT,
    LONG,
    collect,
    serving,
    tokens_of,
    until,
    with_limit,
)
from tests.unit.engine.plan_cases import (
    MIXED,
    Ask,
    change_threads,
    changing,
    expected,
)


def slowly(patch: pytest.MonkeyPatch) -> threading.Event:
    """Let no change of plan get beyond its parameters before the event is set."""
    go_on, move_params = threading.Event(), in_process.move_params

    def waiting(*arguments: Any) -> Any:
        assert go_on.wait(LIMIT)
        return move_params(*arguments)

    patch.setattr(in_process, "move_params", waiting)
    return go_on


@asynccontextmanager
async def half_way(
    llm: AsyncLLM,
) -> AsyncIterator[tuple[asyncio.Task[Any], threading.Event, pytest.MonkeyPatch]]:
    """While a change to two stages copies: who waits for it, and what lets it go on."""
    with pytest.MonkeyPatch.context() as patch:
        go_on = slowly(patch)
        waiting = asyncio.create_task(llm.regranularize(2))
        await until(lambda: llm.plan_status().state == "copying")
        yield waiting, go_on, patch


@with_limit
async def test_the_plan_changes_while_streams_run() -> None:
    async with serving(changing()) as llm:
        tasks = [
            asyncio.create_task(collect(llm, list(ask.prompt), ask.params, str(i)))
            for i, ask in enumerate(MIXED)
        ]
        for stages in (2, 1, 2, 1):
            record = await llm.regranularize(stages, reason="the test")
            assert (record.state, record.reason) == ("done", "the test")
            status = llm.plan_status()
            assert status.state == "serving"
            assert status.deployment.replicas[0].granularity == stages
            assert status.last == record
        for ask, outputs in zip(MIXED, await asyncio.gather(*tasks), strict=True):
            assert tokens_of(outputs) == expected(ask).tokens


@with_limit
async def test_a_change_of_plan_can_go_on_by_itself() -> None:
    """Also where no request comes, and so no step is needed."""
    async with serving(changing()) as llm:
        with pytest.MonkeyPatch.context() as patch:
            go_on = slowly(patch)
            begun = await llm.regranularize(2, wait=False)
            assert begun.state in ("planned", "compiling", "copying")
            with pytest.raises(RegranularizationBusyError):
                await llm.regranularize(1)
            await until(lambda: llm.plan_status().state == "copying")
            go_on.set()
            await until(lambda: llm.plan_status().state == "serving")
        last = llm.plan_status().last
        assert last is not None
        assert (last.number, last.state) == (begun.number, "done")
        await llm.regranularize(1)


@with_limit
async def test_whoever_waits_for_a_change_of_plan_learns_that_it_was_aborted() -> None:
    async with serving(changing()) as llm:
        assert not await llm.abort_regranularization()
        stream = asyncio.create_task(collect(llm, [1, 2], LONG, "r"))
        async with half_way(llm) as (waiting, go_on, _):
            assert await llm.abort_regranularization()
            go_on.set()
            with pytest.raises(RegranularizationError, match="on request; the old plan serves on"):
                await waiting
        assert llm.plan_status().deployment.replicas[0].granularity == 1
        assert tokens_of(await stream) == expected(Ask((1, 2), LONG)).tokens


@with_limit
async def test_a_bad_plan_is_refused_and_the_engine_goes_on() -> None:
    async with serving(changing()) as llm:
        with pytest.raises(MeshError, match="no-such-mesh"):
            await llm.regranularize("no-such-mesh")
        assert tokens_of(await collect(llm, [3, 4], GREEDY, "r")) == alone_deep([3, 4])


def alone_deep(prompt: list[int]) -> list[int]:
    return expected(Ask(tuple(prompt), GREEDY)).tokens


@with_limit
async def test_a_reader_who_leaves_does_not_stop_the_change_of_plan() -> None:
    async with serving(changing()) as llm:
        async with half_way(llm) as (waiting, go_on, _):
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            go_on.set()
            await until(lambda: llm.plan_status().state == "serving")
        assert llm.plan_status().deployment.replicas[0].granularity == 2
        await llm.regranularize(1)


@with_limit
async def test_shutdown_ends_a_change_of_plan_and_tells_who_waits() -> None:
    engine = changing()
    async with serving(engine) as llm:
        async with half_way(llm) as (waiting, go_on, _):
            stopped = asyncio.create_task(llm.shutdown())
            with pytest.raises(EngineDeadError, match="shut down"):
                await waiting
            go_on.set()
            await stopped
        with pytest.raises(EngineDeadError):
            await llm.regranularize(2)
    last = engine.plans.status().last
    assert last is not None
    assert (last.state, last.error) == ("aborted", "the engine ended")
    assert change_threads() == []


@with_limit
async def test_when_the_engine_dies_who_waits_for_a_change_of_plan_learns_it() -> None:
    engine = changing()
    async with serving(engine) as llm, half_way(llm) as (waiting, go_on, patch):

        def broken(engine: Engine) -> Any:
            raise RuntimeError("device lost")

        patch.setattr(Engine, "step", broken)
        with pytest.raises(EngineDeadError, match="device lost"):
            await waiting
        go_on.set()
        await llm.shutdown()
    assert not engine.plans.active
