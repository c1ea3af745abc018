"""Steps on a device, without an engine around them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fjx.engine.engine import Engine
from fjx.engine.progress import Progress
from fjx.pipeline.executor import Executor
from fjx.sampling_params import SamplingParams
from fjx.scheduling.batch_builder import BatchBuilder
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows
from tests.unit.engine.tiny import END, VOCABULARY, run, tiny_engine, tokens_alone

PROMPT = [9, 80, 3, 250, 41, 7]


@pytest.fixture(scope="module")
def executor() -> Executor:
    return tiny_engine(num_pages=33).executor


def request(slot: int, params: SamplingParams) -> Request:
    each = Request(
        id="r",
        prompt_len=len(PROMPT),
        tokens=list(PROMPT),
        params=params,
        seed=params.seed or 0,
        max_len=64,
        arrival=0.0,
    )
    each.slot, each.unread = slot, 1
    each.pages = list(range(4 * slot + 1, 4 * slot + 5))
    return each


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.9, seed=5),
        SamplingParams(temperature=0.9, seed=5, repetition_penalty=1.4, frequency_penalty=0.5),
    ],
    ids=["greedy", "sampled", "penalized"],
)
def test_tokens_feed_the_next_step_on_the_device(
    executor: Executor, params: SamplingParams
) -> None:
    """Three steps are sent before the host reads the first one's token."""
    params = dataclasses.replace(params, ignore_eos=True, max_tokens=2)
    expected = tokens_alone(tiny_engine(), PROMPT, params)
    build = BatchBuilder(executor.limits, (END,), VOCABULARY)
    each = request(2, params)
    first = executor.dispatch(build.build([ScheduledRows(each, 0, len(PROMPT), True)]))
    each.unread = 2
    second = executor.dispatch(build.build([ScheduledRows(each, len(PROMPT), 1, True)]))
    assert [*first.read_tokens(), *second.read_tokens()] == expected


def test_a_step_that_chooses_no_token_brings_none(executor: Executor) -> None:
    each = request(1, SamplingParams(temperature=0, max_tokens=1))
    build = BatchBuilder(executor.limits, (END,), VOCABULARY)
    output = executor.dispatch(build.build([ScheduledRows(each, 0, 4, False)]))
    assert output.read_tokens() == []
    rest = executor.dispatch(build.build([ScheduledRows(each, 4, 2, True)]))
    assert rest.read_tokens() == tokens_alone(tiny_engine(), PROMPT, each.params)


def test_logprobs_can_be_read_for_every_sample(executor: Executor) -> None:
    params = SamplingParams(temperature=0, logprobs=2)
    build = BatchBuilder(executor.limits, (END,), VOCABULARY)
    output = executor.dispatch(
        build.build(
            [ScheduledRows(request(slot, params), 0, len(PROMPT), True) for slot in range(3)]
        )
    )
    tokens = output.read_tokens()
    chosen, rank, best, ids = output.read_logprobs()
    assert tokens == [tokens[0]] * 3
    for row in range(3):
        assert ids[row, 0] == tokens[row]
        assert best[row, 0] == chosen[row] < 0
        assert rank[row] == 1


def test_every_size_fits_some_bucket(executor: Executor) -> None:
    limits = executor.limits
    assert limits.row_buckets[-1] == limits.max_num_batched_tokens
    assert limits.sample_buckets[-1] == limits.max_num_seqs
    assert set(limits.coarse_sample_buckets) <= set(limits.sample_buckets)
    assert limits.coarse_sample_buckets[-1] == limits.max_num_seqs


def test_one_bucket_pads_every_step_to_the_largest(executor: Executor) -> None:
    limits = dataclasses.replace(executor.limits, one_bucket=True)
    sizes = limits.row_buckets, limits.sample_buckets, limits.coarse_sample_buckets
    assert sizes == (
        (limits.max_num_batched_tokens,),
        (limits.max_num_seqs,),
        (limits.max_num_seqs,),
    )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_in_one_bucket_the_tokens_are_the_same(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=6, ignore_eos=True)
    engine = tiny_engine(one_bucket=True)
    assert tokens_alone(engine, PROMPT, params) == tokens_alone(tiny_engine(), PROMPT, params)
    compiled = [key for key in engine.executor.compiler._programs if key[0] in ("embed", "head")]
    assert sorted(compiled) == [("embed", 32, (0,)), ("head", 8, (0,))]


def test_the_layout_splits_into_arrays_that_do_not_overlap(executor: Executor) -> None:
    layout = executor.limits.layout(8)
    packed = np.zeros(layout.size, np.int32)
    step = layout.split(packed)
    for array in (*step[:2], *step.rows, *step[3:]):
        array += 1
    assert (packed == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stage_program_takes_over_between_two_steps(dtype: str) -> None:
    """The first tokens come from the chain of granules, the others from the fused program."""
    params = SamplingParams(temperature=0.8, seed=3, ignore_eos=True, max_tokens=40, logprobs=1)
    (chained,) = tiny_engine(dtype).add("chained", PROMPT, params)
    expected = outputs(tiny_engine(dtype), chained)
    engine = tiny_engine(dtype, num_pages=34)  # an engine of its own
    (request,) = engine.add("fused later", PROMPT, params)
    got = [engine.step() for _ in range(10)]
    assert engine.stats().compiles.get("background", 0) == 0
    engine.executor.compiler.compile_background()
    engine.executor.compiler.wait_background()
    assert engine.stats().compiles["background"] == 2 * len(engine.executor.limits.row_buckets)
    assert [*flattened(got), *outputs(engine, request)] == expected


def flattened(steps: list[list[Progress]]) -> list[tuple[list[int], Any]]:
    return [(each.token_ids, each.logprobs) for step in steps for each in step]


def outputs(engine: Engine, request: Request) -> list[tuple[list[int], Any]]:
    """Tokens and log-probabilities of the rest of a request."""
    steps = []
    while not request.finished:
        steps.append(engine.step())
    run(engine)
    return flattened(steps)
