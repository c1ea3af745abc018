"""Log-probabilities of prompts: those of the model, whatever else runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fjx.engine.engine import Engine
from fjx.outputs import PositionLogprobs
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request
from tests.unit.engine.tiny import VOCABULARY, run, tiny_engine, tokens_alone

LONG = [(7 * i + 3) % VOCABULARY for i in range(70)]


def params(**changes: Any) -> SamplingParams:
    values: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}
    return SamplingParams(**(values | {"prompt_logprobs": 2} | changes))


def scores(request: Request) -> list[PositionLogprobs]:
    """Of all tokens but the first."""
    assert request.prompt_logprobs is not None
    first, *rest = request.prompt_logprobs
    assert first is None
    assert len(rest) == request.prompt_len - 1
    return [each for each in rest if each is not None]


def one_by_one(engine: Engine, prompt: list[int]) -> list[dict[int, float]]:
    """The model's best tokens behind each beginning of a prompt, asked for as an output's."""
    found = []
    for length in range(1, len(prompt)):
        asked = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
        engine.add("one", prompt[:length], asked)
        progress = []
        while engine.has_work:
            progress += engine.step()
        ((position,),) = [each.logprobs for each in progress if each.logprobs]
        found.append({each.token_id: each.logprob for each in position.top})
    return found


@pytest.mark.parametrize("rows", [8, 32])
def test_they_are_the_models_at_each_position(rows: int) -> None:
    """In chunks of a few rows, and for prompts longer than a step has samples."""
    engine = tiny_engine(max_num_batched_tokens=rows)
    (request,) = engine.add("r", LONG, params(prompt_logprobs=20))
    run(engine)
    got = scores(request)
    assert [each.sampled.token_id for each in got] == LONG[1:]
    for each, expected in zip(got, one_by_one(engine, LONG), strict=True):
        assert {t.token_id: t.logprob for t in each.top} == pytest.approx(expected, abs=1e-5)
        assert [t.rank for t in each.top] == list(range(1, 21))
        of_sampled = [t.logprob for t in each.top if t.token_id == each.sampled.token_id]
        assert [each.sampled.logprob] * len(of_sampled) == of_sampled
        assert (each.sampled.rank <= 20) == bool(of_sampled)


def test_a_prompt_that_is_cached_is_scored_all_the_same() -> None:
    engine = tiny_engine()
    (before,) = engine.add("before", LONG, params())
    run(engine)
    (again,) = engine.add("again", LONG, params())
    run(engine)
    assert again.cached_tokens == 0
    assert scores(again) == scores(before)
    assert again.tokens == before.tokens
    (plain,) = engine.add("plain", LONG, params(prompt_logprobs=None))
    run(engine)
    assert plain.cached_tokens > 0
    assert plain.prompt_logprobs is None
    assert plain.tokens == before.tokens


def test_without_output_the_prompt_alone_is_computed() -> None:
    engine = tiny_engine()
    for prompt in ([9], LONG):
        (request,) = engine.add("r", prompt, params(max_tokens=0, logprobs=1))
        progress = []
        while engine.has_work:
            progress += engine.step()
        engine.check_idle()
        ((_, text, ids, logprobs, reason),) = progress
        assert (text, ids, logprobs, reason) == ("", [], [], "length")
        assert request.tokens == prompt
        assert len(scores(request)) == len(prompt) - 1
    (full,) = engine.add("full", [1] * engine.max_model_len, params(max_tokens=0))
    run(engine)
    assert len(scores(full)) == engine.max_model_len - 1


def test_one_of_several_completions_tells_them() -> None:
    engine = tiny_engine()
    first, *others = engine.add("r", LONG, params(n=3, temperature=1.0, seed=5))
    run(engine)
    assert len(scores(first)) == len(LONG) - 1
    assert [each.prompt_logprobs for each in others] == [None, None]


def test_they_do_not_depend_on_what_else_runs() -> None:
    """Batch mates with and without drafts, chunks and preemptions: the same scores and tokens."""
    roomy, tight = tiny_engine(), tiny_engine(num_pages=24, max_num_batched_tokens=16)
    prompts = [LONG[i : i + 40] for i in range(0, 30, 5)]
    alone = []
    for prompt in prompts:
        (request,) = roomy.add("alone", prompt, params(max_tokens=60))
        run(roomy)
        alone.append(request)
    before = tight.scheduler.num_preemptions
    together = [
        tight.add(str(i), prompt, params(max_tokens=60))[0] for i, prompt in enumerate(prompts)
    ]
    run(tight)
    assert tight.scheduler.num_preemptions > before, "or this tests nothing"
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(
            [each.sampled.logprob for each in scores(one)],
            [each.sampled.logprob for each in scores(other)],
            atol=1e-5,
        )


def test_a_step_never_scores_more_rows_than_it_can() -> None:
    engine = tiny_engine(max_num_seqs=2, max_num_batched_tokens=32, max_draft_rows=2)
    plain = tokens_alone(engine, LONG[:9], params(prompt_logprobs=None, max_tokens=20))
    (running,) = engine.add("runs", LONG[:9], params(prompt_logprobs=None, max_tokens=20))
    (scored,) = engine.add("scored", LONG, params())
    run(engine)
    assert running.tokens[9:] == plain
    assert len(scores(scored)) == len(LONG) - 1
