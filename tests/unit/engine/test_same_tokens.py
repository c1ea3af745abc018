"""Promise 1: a request's tokens depend on model, prompt, sampling parameters and seed, nothing
else."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fjx.engine.engine import Engine
from fjx.engine.plain import generate_plainly
from fjx.errors import RequestError
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request
from tests.unit.engine.tiny import VOCABULARY, run, tiny_engine, tokens_alone, tokens_plainly

PLAIN = {"overlap": False, "enable_prefix_caching": False, "max_num_batched_tokens": 256}
SHAPES = {
    "overlapped": {},
    "small chunks": {"max_num_batched_tokens": 8},
    "large chunks": {"max_num_batched_tokens": 256},
    "few pages": {"num_pages": 24},
    "no prefix cache": {"enable_prefix_caching": False},
    "synchronous": {"overlap": False},
    "two at a time": {"max_num_seqs": 2, "max_num_batched_tokens": 12},
    "one granule": {"granule_layers": 4},
    "fused stage": {"fused": True},
}
SAMPLED = [
    SamplingParams(temperature=0.8, top_p=0.9, max_tokens=20),
    SamplingParams(temperature=1.0, top_k=5, repetition_penalty=1.2, max_tokens=20),
    SamplingParams(temperature=0.8, bad_words=("\u4e08\u4e08",), max_tokens=20),
    SamplingParams(temperature=0, prompt_logprobs=2, max_tokens=20),
]
BFLOAT16_SHAPES = ("small chunks", "few pages", "two at a time", "fused stage")
SIZES_OF: dict[str, dict[str, Any]] = {
    "large chunks": PLAIN,
    "no prefix cache": {},
    "synchronous": {},
}
"""Engines of the same sizes, whose programs these take."""

# Few distinct beginnings, so that prompts share prefixes.
prompts = st.builds(
    lambda stem, length, tail: [(stem * 37 + 11 * i) % VOCABULARY for i in range(length)] + tail,
    st.integers(0, 2),
    st.integers(1, 90),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=3),
)
sampling = st.one_of(
    st.just(SamplingParams(temperature=0.0, max_tokens=24)),
    st.builds(
        SamplingParams,
        temperature=st.just(0.8),
        top_p=st.sampled_from([1.0, 0.9, 0.5]),
        top_k=st.sampled_from([0, 5]),
        min_p=st.sampled_from([0.0, 0.1]),
        repetition_penalty=st.sampled_from([1.0, 1.2]),
        frequency_penalty=st.sampled_from([0.0, 0.3]),
        seed=st.integers(0, 2**40),
        max_tokens=st.integers(1, 24),
    ),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1.0]),
        seed=st.integers(0, 2**40),
        max_tokens=st.integers(4, 24),
        min_tokens=st.integers(0, 4),
        allowed_token_ids=st.sampled_from([None, (3, 5, 8, 13, 383)]),
        bad_words=st.sampled_from([(), ("\u4e03",), ("\u4e03\u4e05", "\u4e08\u4e08")]),
        prompt_logprobs=st.sampled_from([None, 2]),
    ),
)
requests = st.tuples(prompts, sampling, st.integers(0, 6), st.booleans())


@cache
def expected(dtype: str, prompt: tuple[int, ...], params: SamplingParams) -> list[int]:
    return tokens_plainly(tiny_engine(dtype, **PLAIN), list(prompt), params)


def engine_of(dtype: str, shape: str) -> Engine:
    """Of this shape, with the programs of an engine of the same sizes where there is one."""
    more: dict[str, Any] = {}
    if shape in SIZES_OF:
        more["compiler"] = tiny_engine(dtype, **SIZES_OF[shape]).executor.compiler
    return tiny_engine(dtype, **SHAPES[shape], **more)


SamplingParams.__hash__ = lambda self: hash(repr(self))  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        *(("float32", shape) for shape in SHAPES),
        *(("bfloat16", shape) for shape in BFLOAT16_SHAPES),
    ],
)
@settings(
    max_examples=8,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(workload=st.lists(requests, min_size=1, max_size=12))
def test_tokens_do_not_depend_on_the_schedule(dtype: str, shape: str, workload: list) -> None:
    engine = engine_of(dtype, shape)
    running: list[tuple[Request, list[int], SamplingParams]] = []
    cancelled = set()
    for i, (prompt, params, steps_before, cancel) in enumerate(workload):
        (request,) = engine.add(str(i), prompt, params)
        running.append((request, prompt, params))
        for _ in range(steps_before):
            engine.step()
        if cancel and i % 3 == 2:
            cancelled.add(request)
            engine.abort(str(i))
    run(engine)
    for request, prompt, params in running:
        got = request.tokens[request.prompt_len :]
        full = expected(dtype, tuple(prompt), params)
        if request in cancelled:
            assert got == full[: len(got)]
        else:
            assert got == full


@pytest.mark.parametrize("shape", ["overlapped", "small chunks", "few pages"])
def test_the_engine_gives_what_the_plain_loop_gives(shape: str) -> None:
    asks = [
        ([7 * i + 1, 5, i] * (1 + 4 * i), replace(params, seed=i, ignore_eos=True))
        for i, params in enumerate([*[SamplingParams(temperature=0, max_tokens=20)] * 5, *SAMPLED])
    ]
    plain = tiny_engine(**PLAIN)
    right = generate_plainly(plain.executor, plain.scheduler, plain.tokenizer, asks)
    engine = engine_of("float32", shape)
    requests = [engine.add(str(i), *ask)[0] for i, ask in enumerate(asks)]
    run(engine)
    for request, other in zip(requests, right, strict=True):
        assert request.tokens == other.tokens
        assert request.finish_reason == other.finish_reason == "length"
        assert request.prompt_logprobs == other.prompt_logprobs
    for (prompt, params), other in zip(asks, right, strict=True):
        assert tokens_plainly(plain, prompt, params) == other.tokens[other.prompt_len :]


def test_the_plain_loop_stops_and_refuses_as_the_engine_does() -> None:
    engine = tiny_engine(**PLAIN)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    tokens = tokens_plainly(engine, [17, 4, 200, 31], params)
    stopping = replace(params, stop_token_ids=(tokens[5],))
    stopped = tokens_alone(engine, [17, 4, 200, 31], stopping)
    assert tokens_plainly(engine, [17, 4, 200, 31], stopping) == stopped == tokens[:6]
    with pytest.raises(RequestError, match="the prompt is empty"):
        tokens_plainly(engine, [], params)


def test_preemption_happens_where_pages_are_few() -> None:
    engine = tiny_engine(**SHAPES["few pages"])
    before = engine.stats().num_preemptions
    for i in range(8):
        engine.add(str(i), [i] * 60, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
    run(engine)
    assert engine.stats().num_preemptions > before


def test_prefix_cache_finds_what_was_computed() -> None:
    engine = tiny_engine()
    prompt = [5] * 100
    first = tokens_alone(engine, prompt, SamplingParams(temperature=0, max_tokens=4))
    (request,) = engine.add("again", prompt, SamplingParams(temperature=0, max_tokens=4))
    run(engine)
    assert request.cached_tokens == 96
    assert request.tokens[100:] == first


def test_batch_mates_do_not_change_a_bit_of_the_logprobs_in_bfloat16() -> None:
    engine = tiny_engine("bfloat16")
    params = SamplingParams(temperature=0, max_tokens=20, logprobs=5, ignore_eos=True)

    def logprobs(mates: int) -> list:
        (request,) = engine.add("r", [7, 8, 9], params)
        for i in range(mates):
            engine.add(str(i), [i + 1] * (3 * i + 1), SamplingParams(temperature=0, max_tokens=9))
        seen = []
        while engine.has_work:
            seen += [p.logprobs for p in engine.step() if p.request is request]
        engine.check_idle()
        return seen

    assert logprobs(0) == logprobs(1) == logprobs(7)
