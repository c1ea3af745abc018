"""`fjx.LLM`: offline generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fjx.llm
import fjx.regranularization.in_process as in_process
from fjx.engine.engine import Engine
from fjx.errors import RegranularizationBusyError, RegranularizationError, RequestError
from fjx.llm import LLM
from fjx.sampling_params import SamplingParams
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.drafter import PromptLookup
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.plan_cases import (
    MIXED,
    Ask,
    change,
    change_threads,
    changing,
    deep_engine,
    expected,
    finish_change,
)
from tests.unit.engine.tiny import LetterTokenizer, tiny_engine, tokens_alone

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
OF_TWO = SamplingParams(
    temperature=0, max_tokens=48, logit_bias={5: 50.0, 6: 50.0}, logprobs=0, ignore_eos=True
)
"""Only two tokens are possible, so that the text repeats itself."""


def text(tokens: list[int]) -> str:
    return LetterTokenizer().add(tokens)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> LLM:
    engine = tiny_engine(max_waiting_requests=5)
    engine.check_idle()
    monkeypatch.setattr(fjx.llm, "start_engine", lambda config, progress: engine)
    return LLM("tiny", progress=False)


def alone(prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return tokens_alone(tiny_engine(), prompt, params)


def test_results_are_in_the_order_of_the_prompts_even_beyond_the_queue(llm: LLM) -> None:
    prompts = [[10 + i] * (1 + 7 * i % 40) for i in range(20)]
    params = [
        SamplingParams(temperature=0, max_tokens=1 + 5 * i % 9, ignore_eos=True) for i in range(20)
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for output, prompt, each in zip(outputs, prompts, params, strict=True):
        assert output.finished
        assert output.prompt_token_ids == prompt
        (completion,) = output.outputs
        assert completion.token_ids == alone(prompt, each)
        assert completion.text == text(completion.token_ids)
        assert completion.finish_reason == "length"
    llm.engine.check_idle()


def test_text_and_token_prompts_give_the_same(llm: LLM) -> None:
    tokens = [40, 41, 42]
    (by_text,) = llm.generate(text(tokens), GREEDY, use_tqdm=False)
    (by_tokens,) = llm.generate(tokens, GREEDY, use_tqdm=False)
    assert by_text.prompt == text(tokens)
    assert by_tokens.prompt is None
    assert by_text.outputs[0].token_ids == by_tokens.outputs[0].token_ids == alone(tokens)


def test_no_prompts_give_no_results(llm: LLM) -> None:
    assert llm.generate([], GREEDY, use_tqdm=False) == []


def test_several_completions_of_one_prompt(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=6, logprobs=1, ignore_eos=True)
    (output,) = llm.generate([50, 51], params, use_tqdm=False)
    assert output.finished
    for index, completion in enumerate(output.outputs):
        assert completion.index == index
        single = SamplingParams(seed=5 + index, max_tokens=6, ignore_eos=True)
        assert completion.token_ids == alone([50, 51], single)
        assert completion.logprobs is not None
        assert [each.sampled.token_id for each in completion.logprobs] == completion.token_ids


def test_outputs_count_steps_and_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = deep_engine(max_draft_rows=20)
    speculator = Speculator(PromptLookup(4), Fixed(4), engine.executor.limits.row_buckets)
    monkeypatch.setattr(engine, "speculator", speculator)
    monkeypatch.setattr(fjx.llm, "start_engine", lambda config, progress: engine)
    llm = LLM("tiny", progress=False)
    asks = [Ask((5, 6) * 8, OF_TWO), Ask((6, 6, 5), OF_TWO)]
    outputs = llm.generate([list(a.prompt) for a in asks], [a.params for a in asks], use_tqdm=False)
    completions = [output.outputs[0] for output in outputs]
    for ask, completion in zip(asks, completions, strict=True):
        right = expected(ask)
        assert completion.token_ids == right.tokens
        assert completion.logprobs is not None
        assert [each.sampled.token_id for each in completion.logprobs] == right.tokens
        assert [each.sampled.logprob for each in completion.logprobs] == pytest.approx(
            [each.sampled.logprob for each in right.logprobs], abs=1e-5
        )
        # each step brings the accepted tokens and one more
        assert completion.steps + completion.accepted_tokens == OF_TWO.max_tokens
        assert 0 < completion.accepted_tokens <= completion.drafted_tokens
        assert completion.pruned_tokens == 0
    stats = llm.stats().speculation
    assert stats is not None
    assert stats.num_draft_tokens == sum(each.drafted_tokens for each in completions)
    assert stats.num_accepted_tokens == sum(each.accepted_tokens for each in completions)
    engine.check_idle()


def test_without_speculation_each_token_is_a_step(llm: LLM) -> None:
    (output,) = llm.generate([50, 51], GREEDY, use_tqdm=False)
    (completion,) = output.outputs
    assert (completion.steps, completion.drafted_tokens, completion.accepted_tokens) == (6, 0, 0)


def test_times_are_in_order(llm: LLM) -> None:
    (output,) = llm.generate([50, 51], GREEDY, use_tqdm=False)
    timing = output.timing
    assert timing is not None
    assert timing.scheduled is not None
    assert timing.first_token is not None
    assert timing.finished is not None
    assert timing.arrival <= timing.scheduled <= timing.first_token <= timing.finished


def test_one_bad_prompt_refuses_all_before_anything_runs(llm: LLM) -> None:
    steps = llm.stats().num_steps
    with pytest.raises(RequestError, match="300 tokens"):
        llm.generate([[1], [2] * 300], GREEDY, use_tqdm=False)
    assert llm.stats().num_steps == steps
    assert not llm.engine.has_work


@pytest.mark.parametrize(
    "prompts",
    [
        5,
        None,
        b"abc",
        {"prompt_token_ids": [1]},
        np.array([1.0, 2.0]),
        [None],
        [[1.5]],
        [["a"]],
        [1, "a"],
        [1, [2]],
        [[1], 2],
        [True],
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused(llm: LLM, prompts: Any) -> None:
    with pytest.raises(RequestError, match=r"^a prompt"):
        llm.generate(prompts, GREEDY, use_tqdm=False)
    llm.engine.check_idle()


@pytest.mark.parametrize("params", [5, {"temperature": 0}, [None]], ids=str)
def test_what_are_no_sampling_params_is_refused(llm: LLM, params: Any) -> None:
    with pytest.raises(RequestError, match="must be SamplingParams"):
        llm.generate([[1]], params, use_tqdm=False)
    llm.engine.check_idle()


@pytest.mark.parametrize(
    "prompts",
    [np.array([50, 51]), [np.int64(50), np.int64(51)], np.array([[50, 51]]), [range(50, 52)]],
    ids=["array", "numbers", "matrix", "range"],
)
def test_token_ids_may_come_in_whatever_holds_them(llm: LLM, prompts: Any) -> None:
    (output,) = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert output.prompt_token_ids == [50, 51]
    assert all(type(token) is int for token in output.prompt_token_ids)
    assert output.outputs[0].token_ids == alone([50, 51])


def test_the_number_of_sampling_params_must_fit(llm: LLM) -> None:
    with pytest.raises(ValueError, match="2 sampling params for 3 prompts"):
        llm.generate([[1], [2], [3]], [GREEDY] * 2, use_tqdm=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("broken")])
def test_an_interrupted_call_leaves_the_engine_clean(
    llm: LLM, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = Engine.step, []

    def interrupted(engine: Engine) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise error
        return step(engine)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", interrupted)
        with pytest.raises(BaseException, match=r"broken|^$"):
            llm.generate([[i] * 30 for i in range(12)], GREEDY, use_tqdm=False)
    (output,) = llm.generate([60, 61], GREEDY, use_tqdm=False)
    assert output.outputs[0].token_ids == alone([60, 61])
    llm.engine.check_idle()


def test_shutdown_gives_up_what_is_left(llm: LLM) -> None:
    llm.engine.add("left", [1, 2], GREEDY)
    llm.shutdown()
    while llm.engine.has_work:
        llm.engine.step()
    llm.engine.check_idle()


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    monkeypatch.setattr(fjx.llm, "start_engine", lambda config, progress: changing())
    yield LLM("tiny", progress=False)
    finish_change(changing())
    change(changing(), 1)


def assert_right(llm: LLM) -> None:
    prompts, params = [ask.prompt for ask in MIXED], [ask.params for ask in MIXED]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for ask, output in zip(MIXED, outputs, strict=True):
        assert output.outputs[0].token_ids == expected(ask).tokens


def test_the_plan_changes_and_no_token_does(deep: LLM) -> None:
    record = deep.regranularize(2)
    assert record.state == "done"
    assert record.after == deep.plan_status().deployment
    assert deep.plan_status().deployment.replicas[0].granularity == 2
    assert_right(deep)


def test_a_change_that_nobody_waits_for_goes_on_while_requests_run(deep: LLM) -> None:
    record = deep.regranularize(2, wait=False)
    assert record.state != "done"
    with pytest.raises(RegranularizationBusyError):
        deep.regranularize(1)
    deep.engine.plans.wait(60)
    assert_right(deep)
    assert deep.plan_status().state == "serving"
    assert deep.plan_status().deployment.replicas[0].granularity == 2


def test_a_change_that_fails_says_why_and_the_old_plan_serves_on(
    deep: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory is left")

    with monkeypatch.context() as patch:
        patch.setattr(in_process, "move_params", broken)
        with pytest.raises(RegranularizationError, match="no memory is left; the old plan serves"):
            deep.regranularize(2)
    assert deep.plan_status().deployment.replicas[0].granularity == 1
    assert_right(deep)


def test_shutdown_ends_a_change_of_plan(deep: LLM) -> None:
    deep.regranularize(2, wait=False)
    deep.shutdown()
    last = deep.plan_status().last
    assert last is not None
    assert (last.state, last.error) == ("aborted", "the engine was shut down")
    assert deep.plan_status().state == "serving"
    assert change_threads() == []


def test_prompts_are_scored(llm: LLM) -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    prompts = [[3, 5, 7, 9], [4]]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.prompt_logprobs is not None
        first, *rest = output.prompt_logprobs
        assert first is None
        assert [each.sampled.token_id for each in rest if each is not None] == prompt[1:]
        assert output.outputs[0].token_ids == []
        assert output.outputs[0].finish_reason == "length"
