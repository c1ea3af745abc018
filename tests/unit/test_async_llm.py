"""`fjx.AsyncLLM`: streams, cancellation, shutdown, and the engine's death."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

import fjx.async_llm
from fjx.async_llm import AsyncLLM
from fjx.config import EngineConfig
from fjx.engine.detokenizer import Detokenizer
from fjx.engine.engine import Engine
from fjx.errors import (
    EngineDeadError,
    ModelError,
    QueueFullError,
    RequestError,
    UserError,
)
from fjx.outputs import EngineStats
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.drafter import PromptLookup
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.async_cases import (
    GREEDY,
    LONG,
    alone,
    collect,
    is_idle,
    serving,
    text,
    tokens_of,
    until,
    with_limit,
)
from tests.unit.engine.plan_cases import (
    Ask,
    deep_engine,
    expected,
)
from tests.unit.engine.tiny import tiny_engine


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
            assert [each.finished for each in outputs] == [False] * (len(outputs) - 1) + [True]
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
    assert len(parts) <= last.steps == 48 - last.accepted_tokens
    assert last.drafted_tokens >= last.accepted_tokens > 0


@with_limit
async def test_completions_of_one_prompt_are_interleaved() -> None:
    async with serving() as llm:
        params = SamplingParams(n=2, seed=3, max_tokens=60, ignore_eos=True)
        outputs = await collect(llm, [5, 6], params, "two")
        for index in range(2):
            single = SamplingParams(seed=3 + index, max_tokens=60, ignore_eos=True)
            assert tokens_of(outputs, index) == alone([5, 6], single)
        order = [output.outputs[0].index for output in outputs]
        assert order != sorted(order)
        assert [each.finished for each in outputs] == [False] * (len(outputs) - 1) + [True]


@with_limit
async def test_closing_a_stream_aborts_the_request() -> None:
    async with serving() as llm:
        stream = llm.generate([1] * 40, LONG, "left")
        await anext(stream)
        assert llm.stats().num_requests_running == 1
        await stream.aclose()
        await until(is_idle(llm))
        assert llm.stats().requests_finished["abort"] >= 1


def test_steps_that_change_no_request_make_no_new_counters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, asked = list[EngineStats](), replace(GREEDY, max_tokens=60)
    stats = Engine.stats

    def counted(self: Engine) -> EngineStats:
        made.append(stats(self))
        return made[-1]

    async def run() -> None:
        async with serving() as llm:
            before = llm.stats()
            await collect(llm, [3, 4], asked, "one")
            await until(is_idle(llm))
            assert llm.stats().num_steps - before.num_steps >= 60
            assert llm.stats().generation_tokens - before.generation_tokens == 60

    monkeypatch.setattr("fjx.async_llm._STATS_SECONDS", 1000.0)
    monkeypatch.setattr(Engine, "stats", counted)
    with_limit(run)()
    assert len(made) <= 5, "start, arrival, end, and once idle"


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
async def test_a_displaced_request_learns_so_and_nobody_else_is_disturbed() -> None:
    async with serving(max_num_seqs=1, max_waiting_requests=2) as llm:
        first = asyncio.create_task(collect(llm, [1, 2], LONG, "first"))
        await until(lambda: llm.stats().num_requests_running == 1)
        waiting = [asyncio.create_task(collect(llm, [i], GREEDY, str(i))) for i in (3, 4)]
        await until(lambda: llm.stats().num_requests_waiting == 2)
        urgent = [output async for output in llm.generate([5], GREEDY, "urgent", priority=-1)]
        assert tokens_of(urgent) == alone([5])
        assert tokens_of(await waiting[0]) == alone([3])
        with pytest.raises(QueueFullError, match="more urgent") as displaced:
            await waiting[1]
        assert displaced.value.retry_after >= 1.0
        assert tokens_of(await first) == alone([1, 2], LONG)
        assert tokens_of(await collect(llm, [4], GREEDY, "4")) == alone([4])


@with_limit
async def test_a_displaced_request_learns_so_even_if_the_other_one_fails() -> None:
    begin = Detokenizer.begin

    def breaks(self: Detokenizer, request: Request) -> None:
        if request.id == "urgent":
            raise ZeroDivisionError("of the urgent one")
        begin(self, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detokenizer, "begin", breaks)
        async with serving(max_num_seqs=1, max_waiting_requests=2) as llm:
            first = asyncio.create_task(collect(llm, [1, 2], LONG, "first"))
            await until(lambda: llm.stats().num_requests_running == 1)
            waiting = [asyncio.create_task(collect(llm, [i], GREEDY, str(i))) for i in (3, 4)]
            await until(lambda: llm.stats().num_requests_waiting == 2)
            with pytest.raises(ZeroDivisionError):
                await anext(llm.generate([5], GREEDY, "urgent", priority=-1))
            with pytest.raises(QueueFullError, match="more urgent"):
                await waiting[1]
            assert tokens_of(await waiting[0]) == alone([3])
            assert tokens_of(await first) == alone([1, 2], LONG)


@with_limit
async def test_what_fails_before_the_first_request_fails_the_start() -> None:
    def breaks(engine: Engine) -> Any:
        raise ZeroDivisionError("of the description")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fjx.async_llm, "engine_lines", breaks)
        with pytest.raises(ZeroDivisionError):
            async with serving():
                pass


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
async def test_a_call_that_ends_the_engine_leaves_no_caller_waiting() -> None:
    async with serving() as llm:

        def ends(engine: Engine) -> None:
            raise SystemExit(3)

        calls = [llm._call(ends), llm._call(Engine.stats)]
        for call in calls:
            with pytest.raises((SystemExit, EngineDeadError)):
                await asyncio.wrap_future(call)
        await until(lambda: llm.error is not None)


@with_limit
async def test_what_nobody_has_read_is_added_up() -> None:
    """A reader that is slow gets larger pieces, and as many tokens and log-probabilities."""
    params = replace(LONG, logprobs=2, n=2, seed=1)
    async with serving() as llm:
        whole = await collect(llm, [1, 2], params, "read")
        stream = llm.generate([1, 2], params, "slow")
        outputs = [await anext(stream)]
        await until(is_idle(llm))
        outputs += [output async for output in stream]
        assert len(outputs) <= 4 < len(whole)
        for index in range(2):
            assert tokens_of(outputs, index) == tokens_of(whole, index)
            parts, read = (
                [part for output in each for part in output.outputs if part.index == index]
                for each in (outputs, whole)
            )
            assert "".join(part.text for part in parts) == "".join(part.text for part in read)
            assert [x for part in parts for x in part.logprobs] == [
                x for part in read for x in part.logprobs
            ]
            assert parts[-1].finish_reason == "length"
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]


@with_limit
async def test_parameters_of_a_wrong_type_are_refused() -> None:
    async with serving() as llm:
        for params in (None, 5, "greedy"):
            with pytest.raises(RequestError, match="params must be SamplingParams"):
                await collect(llm, [1, 2], params, "odd")  # type: ignore[arg-type]


@with_limit
async def test_what_an_idle_engine_holds_by_mistake_keeps_nobody_from_being_served() -> None:
    def audit(engine: Engine) -> None:
        raise AssertionError("a page is held")

    async with serving() as llm:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "check_idle", audit)
            await collect(llm, [1, 2], GREEDY, "before")
            await until(is_idle(llm))
            after = await collect(llm, [1, 2], GREEDY, "after")
    assert tokens_of(after) == alone([1, 2])


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


@with_limit
async def test_a_step_that_does_not_end_is_seen_and_left_behind() -> None:
    engine = tiny_engine(max_num_batched_tokens=16, max_num_seqs=4)
    step, entered, release = engine.step, threading.Event(), threading.Event()

    def hangs() -> Any:
        entered.set()
        release.wait()
        return step()

    async with serving(engine) as llm:
        assert llm.stalled_seconds == 0.0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "step", hangs)
            asked = asyncio.create_task(collect(llm, [1, 2], GREEDY, "r"))
            await asyncio.to_thread(entered.wait)
            before = llm.stalled_seconds
            await asyncio.sleep(0.01)
            assert llm.stalled_seconds > before > 0
            assert not await llm.shutdown(patience=0.05)
            release.set()
            with pytest.raises(EngineDeadError):
                await asked
        assert await llm.shutdown()
        await llm.ended()
        assert llm.stalled_seconds == 0.0


@with_limit
async def test_a_request_that_fails_tells_why_and_others_go_on() -> None:
    engine = tiny_engine(max_num_batched_tokens=16, max_num_seqs=4)
    add = Detokenizer.add

    def breaks(self: Detokenizer, request: Request, token: int) -> Any:
        if request.id == "bad" and request.num_output > 2:
            raise ZeroDivisionError("of the bad one")
        return add(self, request, token)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detokenizer, "add", breaks)
        async with serving(engine) as llm:
            bad, good = await asyncio.gather(
                collect(llm, [1, 2], GREEDY, "bad"), collect(llm, [3, 4], GREEDY, "good")
            )
    assert bad[-1].outputs[0].finish_reason == "error"
    assert bad[-1].error == "ZeroDivisionError: of the bad one"
    assert tokens_of(good) == alone([3, 4])


@with_limit
async def test_a_prompts_scores_come_with_the_first_output_of_each_completion() -> None:
    params = replace(GREEDY, temperature=1.0, seed=1, n=3, prompt_logprobs=2)
    prompt = [(7 * i + 3) % 384 for i in range(40)]
    async with serving(max_num_batched_tokens=16, max_num_seqs=4) as llm:
        outputs = await collect(llm, prompt, params, "r")
    first: dict[int, Any] = {}
    for output in outputs:
        index = output.outputs[0].index
        if index in first:
            assert output.prompt_logprobs is None
        else:
            first[index] = output.prompt_logprobs
    assert sorted(first) == [0, 1, 2]
    assert first[0][0] is None
    assert [each.sampled.token_id for each in first[0][1:]] == prompt[1:]
    assert first[0] == first[1] == first[2]
    assert sum(output.outputs[0].finish_reason is not None for output in outputs) == 3
