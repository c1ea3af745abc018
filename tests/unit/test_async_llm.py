"""`fjx.AsyncLLM`: streams, cancellation, shutdown, and the engine's death."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any

import pytest

import fjx.async_llm
import fjx.pipeline.regranularize as regranularize
from fjx.async_llm import AsyncLLM
from fjx.config import EngineConfig
from fjx.engine.drafter import PromptLookup
from fjx.engine.engine import Engine
from fjx.engine.speculator import Speculator
from fjx.errors import (
    EngineDeadError,
    MeshError,
    ModelError,
    QueueFullError,
    RegranularizationBusyError,
    RegranularizationError,
    RequestError,
    UserError,
)
from fjx.outputs import RequestOutput
from fjx.sampling_params import SamplingParams
from fjx.speculation.policies import Fixed
from tests.unit.engine.plan_cases import (
    MIXED,
    Ask,
    change,
    change_threads,
    deep_engine,
    expected,
)
from tests.unit.engine.tiny import LetterTokenizer, run, tiny_engine, tokens_alone

LIMIT = 60.0
"""Seconds after which a stream counts as hanging."""
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


def text(tokens: list[int]) -> str:
    return LetterTokenizer().add(tokens)


def alone(prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return tokens_alone(tiny_engine(), prompt, params)


@asynccontextmanager
async def serving(engine: Engine | None = None, **shape: Any) -> AsyncIterator[AsyncLLM]:
    """A started engine, which is idle again afterwards, whatever became of it."""
    if engine is None:
        engine = tiny_engine(**({"max_num_batched_tokens": 16, "max_num_seqs": 4} | shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fjx.async_llm, "start_engine", lambda config: engine)
        llm = AsyncLLM(EngineConfig(model="tiny"))
        await llm.start()
    try:
        yield llm
    finally:
        await llm.shutdown()
        engine.abort_all()
        run(engine)


def with_limit(test: Callable[[], Any]) -> Callable[[], None]:
    """Run a coroutine as a test; it fails where it hangs."""

    def limited() -> None:
        asyncio.run(asyncio.wait_for(test(), LIMIT))

    limited.__name__ = test.__name__
    return limited


async def collect(llm: AsyncLLM, prompt: Any, params: SamplingParams, id: str) -> list[Any]:
    return [output async for output in llm.generate(prompt, params, id)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def is_idle(llm: AsyncLLM) -> Callable[[], bool]:
    def idle() -> bool:
        stats = llm.stats()
        return (
            stats.num_requests_running + stats.num_requests_waiting == 0
            and stats.kv_cache_usage == 0
        )

    return idle


def tokens_of(outputs: list[RequestOutput], index: int = 0) -> list[int]:
    return [
        token
        for output in outputs
        for part in output.outputs
        if part.index == index
        for token in part.token_ids
    ]


@with_limit
async def test_what_streams_adds_up_to_the_whole() -> None:
    async with serving() as llm:
        assert llm.is_ready
        assert (llm.max_model_len, llm.vocab_size) == (256, 384)
        prompts = [[i + 1] * (9 * i + 1) for i in range(6)]
        streams = await asyncio.gather(
            *(collect(llm, prompt, GREEDY, str(i)) for i, prompt in enumerate(prompts))
        )
        for i, (prompt, outputs) in enumerate(zip(prompts, streams, strict=True)):
            assert tokens_of(outputs) == alone(prompt)
            assert "".join(output.outputs[0].text for output in outputs) == text(alone(prompt))
            assert [output.finished for output in outputs] == [False] * 5 + [True]
            assert outputs[-1].outputs[0].finish_reason == "length"
            assert {output.request_id for output in outputs} == {str(i)}
        by_text = await collect(llm, text([7, 8]), GREEDY, "text")
        assert tokens_of(by_text) == alone([7, 8])
        assert by_text[0].prompt == text([7, 8])


@with_limit
async def test_tokens_of_one_step_stream_together() -> None:
    of_two = SamplingParams(
        temperature=0, max_tokens=48, logit_bias={5: 50.0, 6: 50.0}, logprobs=0, ignore_eos=True
    )
    ask = Ask((5, 6) * 8, of_two)
    engine = deep_engine(max_draft_rows=20)
    with pytest.MonkeyPatch.context() as patch:
        buckets = engine.executor.limits.row_buckets
        patch.setattr(engine, "speculator", Speculator(PromptLookup(4), Fixed(4), buckets))
        async with serving(engine) as llm:
            outputs = await collect(llm, list(ask.prompt), ask.params, "drafted")
    parts = [output.outputs[0] for output in outputs]
    right = expected(ask)
    assert tokens_of(outputs) == right.tokens
    for part in parts:
        assert [each.sampled.token_id for each in part.logprobs] == part.token_ids
    assert "".join(part.text for part in parts) == text(right.tokens)
    assert max(len(part.token_ids) for part in parts) > 1
    last = parts[-1]
    assert last.steps == len(parts) == 48 - last.accepted_tokens
    assert last.drafted_tokens >= last.accepted_tokens > 0


@with_limit
async def test_completions_of_one_prompt_are_interleaved() -> None:
    async with serving() as llm:
        params = SamplingParams(n=2, seed=3, max_tokens=6, ignore_eos=True)
        outputs = await collect(llm, [5, 6], params, "two")
        for index in range(2):
            single = SamplingParams(seed=3 + index, max_tokens=6, ignore_eos=True)
            assert tokens_of(outputs, index) == alone([5, 6], single)
        order = [output.outputs[0].index for output in outputs]
        assert order != sorted(order)
        assert [output.finished for output in outputs] == [False] * 11 + [True]


@with_limit
async def test_closing_a_stream_aborts_the_request() -> None:
    async with serving() as llm:
        stream = llm.generate([1] * 40, LONG, "left")
        await anext(stream)
        assert llm.stats().num_requests_running == 1
        await stream.aclose()
        await until(is_idle(llm))
        assert llm.stats().requests_finished["abort"] >= 1


@with_limit
async def test_cancelling_a_reader_aborts_its_requests_only() -> None:
    async with serving() as llm:
        others = [
            asyncio.create_task(collect(llm, [i], LONG, f"left{i}")) for i in range(8)
        ]  # more than run at once: some wait
        stays = asyncio.create_task(collect(llm, [9], GREEDY, "stays"))
        await until(lambda: llm.stats().num_requests_running == 4)
        for task in others:
            task.cancel()
        assert tokens_of(await stays) == alone([9])
        await until(is_idle(llm))
        for task in others:
            with suppress(asyncio.CancelledError):
                assert not await task


@with_limit
async def test_abort_ends_the_stream_with_its_reason() -> None:
    async with serving() as llm:
        task = asyncio.create_task(collect(llm, [1, 2], LONG, "r"))
        await until(lambda: llm.stats().num_requests_running == 1)
        await llm.abort("r")
        outputs = await task
        assert outputs[-1].finished
        assert outputs[-1].outputs[0].finish_reason == "abort"
        await until(is_idle(llm))
        await llm.abort("never heard of")


@with_limit
async def test_bad_requests_are_refused_and_the_engine_goes_on() -> None:
    async with serving(max_waiting_requests=2) as llm:
        with pytest.raises(RequestError, match="prompt is empty"):
            await collect(llm, [], GREEDY, "empty")
        with pytest.raises(QueueFullError):
            await asyncio.gather(*(collect(llm, [i], LONG, str(i)) for i in range(16)))
        await until(lambda: llm.stats().num_requests_waiting < 2)
        assert tokens_of(await collect(llm, [3, 4], GREEDY, "good")) == alone([3, 4])


@with_limit
async def test_an_id_in_use_is_refused_without_harm_to_its_owner() -> None:
    async with serving() as llm:
        first = asyncio.create_task(collect(llm, [1, 2], LONG, "same"))
        await until(lambda: llm.stats().num_requests_running == 1)
        with pytest.raises(RequestError, match="in use"):
            await collect(llm, [3], GREEDY, "same")
        assert tokens_of(await first) == alone([1, 2], LONG)


@with_limit
async def test_shutdown_lets_running_requests_finish_within_the_drain() -> None:
    async with serving() as llm:
        task = asyncio.create_task(collect(llm, [1, 2], LONG, "r"))
        await until(lambda: llm.stats().num_requests_running == 1)
        await llm.shutdown(drain=30)
        assert tokens_of(await task) == alone([1, 2], LONG)
        assert not llm.is_ready
        with pytest.raises(EngineDeadError, match="not running"):
            await collect(llm, [1], GREEDY, "late")
        with pytest.raises(EngineDeadError):
            await llm.abort("r")


@with_limit
async def test_shutdown_without_drain_ends_streams_with_an_error() -> None:
    async with serving() as llm:
        tasks = [asyncio.create_task(collect(llm, [i], LONG, str(i))) for i in range(8)]
        await until(lambda: llm.stats().num_requests_running == 4)
        started = time.monotonic()
        await llm.shutdown()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - started < 10
        assert {type(each) for each in results} == {EngineDeadError}
        assert "shut down" in str(results[0])


@with_limit
async def test_when_the_engine_dies_nothing_hangs() -> None:
    async with serving() as llm:
        step = Engine.step
        tasks = [asyncio.create_task(collect(llm, [i], LONG, str(i))) for i in range(8)]
        await until(lambda: llm.stats().num_requests_running == 4)

        def broken(engine: Engine) -> Any:
            step(engine)
            raise RuntimeError("device lost")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "step", broken)
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in results} == {EngineDeadError}
        assert "device lost" in str(results[0])
        assert not llm.is_ready
        assert llm.error is not None
        assert "device lost" in llm.error
        with pytest.raises(EngineDeadError, match="device lost"):
            await collect(llm, [1], GREEDY, "late")
        with pytest.raises(EngineDeadError, match="device lost"):
            await llm.abort("0")


@with_limit
async def test_a_model_that_cannot_be_had_fails_the_start() -> None:
    def missing(config: EngineConfig) -> Engine:
        raise ModelError("no model 'x'")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fjx.async_llm, "start_engine", missing)
        llm = AsyncLLM(EngineConfig(model="x"))
        with pytest.raises(UserError, match="no model 'x'"):
            await llm.start()
    assert not llm.is_ready
    assert llm.error == "no model 'x'"
    with pytest.raises(EngineDeadError, match="no model 'x'"):
        await collect(llm, [1], GREEDY, "r")
    with pytest.raises(EngineDeadError, match="no model 'x'"):
        await llm.abort("r")
    await llm.shutdown()


def test_before_the_start_nothing_is_served() -> None:
    llm = AsyncLLM(EngineConfig(model="tiny"))
    assert not llm.is_ready
    with pytest.raises(EngineDeadError, match="not running"):
        _ = llm.tokenizer


@cache
def changing() -> Engine:
    """An engine with the programs of one and of two stages."""
    engine = deep_engine(num_pages=33)
    for target in (2, 1):
        change(engine, target)
    return engine


def slowly(patch: pytest.MonkeyPatch) -> threading.Event:
    """Let no change of plan get beyond its parameters before the event is set."""
    go_on, move_params = threading.Event(), regranularize.move_params

    def waiting(*arguments: Any) -> Any:
        assert go_on.wait(LIMIT)
        return move_params(*arguments)

    patch.setattr(regranularize, "move_params", waiting)
    return go_on


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
        with pytest.MonkeyPatch.context() as patch:
            go_on = slowly(patch)
            waiting = asyncio.create_task(llm.regranularize(2))
            await until(lambda: llm.plan_status().state == "copying")
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
        with pytest.MonkeyPatch.context() as patch:
            go_on = slowly(patch)
            waiting = asyncio.create_task(llm.regranularize(2))
            await until(lambda: llm.plan_status().state == "copying")
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
        with pytest.MonkeyPatch.context() as patch:
            go_on = slowly(patch)
            waiting = asyncio.create_task(llm.regranularize(2))
            await until(lambda: llm.plan_status().state == "copying")
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
    async with serving(engine) as llm:
        with pytest.MonkeyPatch.context() as patch:
            go_on = slowly(patch)
            waiting = asyncio.create_task(llm.regranularize(2))
            await until(lambda: llm.plan_status().state == "copying")

            def broken(engine: Engine) -> Any:
                raise RuntimeError("device lost")

            patch.setattr(Engine, "step", broken)
            with pytest.raises(EngineDeadError, match="device lost"):
                await waiting
            go_on.set()
            await llm.shutdown()
    assert not engine.plans.active
