"""A started `fjx.AsyncLLM` for tests, and what its clients do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import fjx.async_llm
from fjx.async_llm import AsyncLLM
from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.outputs import RequestOutput
from fjx.sampling_params import SamplingParams
from tests.unit.engine.tiny import LetterTokenizer, run, tiny_engine, tokens_alone

LIMIT = 300.0
"""Seconds after which a stream counts as hanging: it may wait for compilers on a busy machine."""
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
