"""What a request asks for and gets: how it ends, its text, its log-probabilities, its errors."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from fjx.engine.engine import Engine
from fjx.engine.progress import Progress
from fjx.errors import QueueFullError, RequestError
from fjx.sampling_params import SamplingParams
from tests.unit.engine.tiny import END, VOCABULARY, run, tiny_engine, tokens_alone

PROMPT = [17, 4, 200, 31]


def engine() -> Engine:
    return tiny_engine()


def greedy(**changes: Any) -> SamplingParams:
    return SamplingParams(temperature=0, **({"max_tokens": 12, "ignore_eos": True} | changes))


def generate(params: SamplingParams, prompt: list[int] = PROMPT) -> tuple[str, list[Progress]]:
    """The text of a request, and its progress."""
    (request,) = engine().add("r", prompt, params)
    progress = []
    while engine().has_work:
        progress += [each for each in engine().step() if each.request is request]
    engine().check_idle()
    assert [t for each in progress for t in each.token_ids] == request.tokens[len(prompt) :]
    assert [each.finish_reason is None for each in progress] == [True] * (len(progress) - 1) + [
        False
    ]
    return "".join(each.text for each in progress), progress


def letters(tokens: list[int]) -> str:
    return engine().tokenizer.stream().add(tokens)


def ending(progress: list[Progress]) -> tuple[str | None, int | str | None, int]:
    """Finish reason, stop reason and number of tokens."""
    request = progress[-1].request
    return request.finish_reason, request.stop_reason, request.num_output


@pytest.fixture(scope="module")
def plain() -> list[int]:
    """The greedy continuation of the prompt; the tests stop somewhere in it."""
    tokens = tokens_alone(engine(), PROMPT, greedy())
    assert len(tokens) == 12
    assert tokens[5] not in tokens[:5]
    assert tokens[4:6] not in [tokens[i : i + 2] for i in range(4)]
    return tokens


def test_max_tokens_ends_with_length(plain: list[int]) -> None:
    text, progress = generate(greedy(max_tokens=5))
    assert text == letters(plain[:5])
    assert ending(progress) == ("length", None, 5)


def test_without_max_tokens_a_request_ends_with_the_context() -> None:
    prompt = [3] * 240
    _, progress = generate(greedy(max_tokens=None), prompt)
    assert ending(progress) == ("length", None, engine().max_model_len - 240)


def test_a_stop_token_ends_the_request_and_stays_out_of_the_text(plain: list[int]) -> None:
    text, progress = generate(greedy(stop_token_ids=(plain[5],)))
    assert text == letters(plain[:5])
    assert ending(progress) == ("stop", plain[5], 6)


def test_the_end_token_ends_the_request_unless_ignored() -> None:
    bias = {END: 100.0}
    text, progress = generate(greedy(logit_bias=bias, ignore_eos=False))
    assert text == ""
    assert ending(progress) == ("stop", None, 1)
    _, progress = generate(greedy(logit_bias=bias))
    assert ending(progress) == ("length", None, 12)
    assert progress[0].token_ids == [END]


def test_min_tokens_holds_end_and_stop_tokens_back(plain: list[int]) -> None:
    params = greedy(logit_bias={END: 100.0}, ignore_eos=False, min_tokens=4)
    _, progress = generate(params)
    assert ending(progress) == ("stop", None, 5)
    _, progress = generate(greedy(stop_token_ids=(plain[5],), min_tokens=7))
    tokens = progress[-1].request.tokens[len(PROMPT) :]
    assert plain[5] not in tokens[:7]
    assert tokens[:5] == plain[:5]


def test_a_stop_string_of_several_tokens_ends_the_text_before_it(plain: list[int]) -> None:
    stop = letters(plain[4:6])
    text, progress = generate(greedy(stop=stop))
    assert text == letters(plain[:4])
    assert ending(progress) == ("stop", stop, 6)
    assert progress[4].text == "", "the first half is held back"
    text, _ = generate(greedy(stop=stop, include_stop_str_in_output=True))
    assert text == letters(plain[:6])


def test_text_held_back_for_a_stop_string_comes_with_the_end(plain: list[int]) -> None:
    text, progress = generate(greedy(stop=letters([plain[4], END]), max_tokens=5))
    assert text == letters(plain[:5])
    assert ending(progress) == ("length", None, 5)


def test_a_stop_string_before_min_tokens_is_text(plain: list[int]) -> None:
    text, progress = generate(greedy(stop=letters([plain[1]]), min_tokens=3, max_tokens=3))
    assert text == letters(plain[:3])
    assert ending(progress) == ("length", None, 3)


def test_logprobs_are_those_of_the_model(plain: list[int]) -> None:
    _, progress = generate(greedy(logprobs=VOCABULARY // 20))
    for each, token in zip(progress, plain, strict=True):
        assert each.logprobs is not None
        (position,) = each.logprobs
        assert (position.sampled.token_id, position.sampled.rank) == (token, 1)
        assert position.top[0] == position.sampled
        values = [entry.logprob for entry in position.top]
        assert values == sorted(values, reverse=True)
        assert [entry.rank for entry in position.top] == list(range(1, len(values) + 1))
        assert np.exp(values).sum() < 1 + 1e-5


def test_logprobs_equal_the_log_softmax_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    compiler = engine().executor.compiler
    get = compiler.get

    def watched(key: Any) -> Any:
        program = get(key)
        if key[0] != "head":
            return program

        def run_head(*arguments: Any) -> Any:
            logits = program(*arguments)
            seen.append(np.asarray(logits[0], np.float64))
            return logits

        return run_head

    monkeypatch.setattr(compiler, "get", watched)
    _, progress = generate(
        SamplingParams(temperature=1.5, seed=9, max_tokens=8, logprobs=3, ignore_eos=True)
    )
    ranks = []
    for each, logits in zip(progress, seen, strict=True):
        assert each.logprobs is not None
        expected = logits - np.log(np.exp(logits).sum())
        (position,) = each.logprobs
        for entry in (position.sampled, *position.top):
            assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-4)
            assert entry.rank == 1 + (logits > logits[entry.token_id]).sum()
        assert len(position.top) == 3
        assert position.sampled.token_id == each.token_ids[0]
        ranks.append(position.sampled.rank)
    assert max(ranks) > 1, "sampling at this temperature leaves the best token"


def test_logprobs_come_before_penalties_and_only_where_asked_for() -> None:
    _, progress = generate(greedy(max_tokens=3, logit_bias={7: 50.0}, logprobs=1))
    for each in progress:
        assert each.logprobs is not None
        assert each.token_ids == [7]
        assert each.logprobs[0].top[0].token_id != 7
    _, progress = generate(greedy(max_tokens=3, logprobs=0))
    assert [each.logprobs and each.logprobs[0].top for each in progress] == [()] * 3
    _, progress = generate(greedy(max_tokens=3))
    assert {each.logprobs for each in progress} == {None}


def test_several_completions_are_those_of_successive_seeds() -> None:
    def sampled(seed: int, n: int = 1) -> SamplingParams:
        return SamplingParams(seed=seed, n=n, max_tokens=10, ignore_eos=True)

    requests = engine().add("many", PROMPT, sampled(40, n=3))
    run(engine())
    completions = [each.tokens[len(PROMPT) :] for each in requests]
    assert completions == [tokens_alone(engine(), PROMPT, sampled(40 + i)) for i in range(3)]
    assert len({tuple(each) for each in completions}) == 3
    assert [each.index for each in requests] == [0, 1, 2]


def test_without_a_seed_completions_differ() -> None:
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    assert tokens_alone(engine(), PROMPT, params) != tokens_alone(engine(), PROMPT, params)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_an_aborted_request_leaves_nothing_behind(steps: int, plain: list[int]) -> None:
    """While it waits, in the middle of its prefill, with a step in flight, and while it decodes."""
    engine().add("gone", list(range(70)), greedy(n=2))
    (stays,) = engine().add("stays", PROMPT, greedy())
    for _ in range(steps):
        engine().step()
    progress = engine().abort("gone")
    assert [each.finish_reason for each in progress] == ["abort", "abort"]
    assert not engine().knows("gone")
    engine().add("gone", PROMPT, greedy())  # the id is free again
    assert engine().abort("unknown") == []
    run(engine())
    assert stays.tokens[len(PROMPT) :] == plain
    assert engine().abort("gone") == []


def test_a_preempted_request_can_be_aborted() -> None:
    small = tiny_engine(num_pages=24)
    for i in range(6):
        small.add(str(i), [i] * 60, greedy(max_tokens=60))
    while not small.scheduler.num_preemptions:
        small.step()
    for i in range(6):
        small.abort(str(i))
    run(small)


def test_abort_all_clears_the_engine() -> None:
    for i in range(12):
        engine().add(str(i), PROMPT, greedy())
    engine().step()
    assert len(engine().abort_all()) == 12
    run(engine())


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "prompt is empty"),
        ([1] * 256, {}, "256 tokens, but the context is 256"),
        ([1, VOCABULARY], {}, f"prompt has token id {VOCABULARY}, but the vocabulary ends at 383"),
        ([1, -1], {}, "prompt has token id -1"),
        ([1], {"logit_bias": {VOCABULARY: 1.0}}, "logit_bias has token id 384"),
        ([1], {"stop_token_ids": (VOCABULARY,)}, "stop_token_ids has token id 384"),
        ([1], {"stop_token_ids": (1,) * 385}, "stop_token_ids has more ids than there are: 384"),
        ([1], {"n": 1025}, "n is 1025"),
    ],
)
def test_impossible_requests_are_refused(
    prompt: list[int], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        engine().add("bad", prompt, SamplingParams(**params))
    engine().check_idle()


def test_an_id_can_be_used_once_at_a_time() -> None:
    engine().add("r", PROMPT, greedy())
    with pytest.raises(RequestError, match="'r' is in use"):
        engine().add("r", PROMPT, greedy())
    run(engine())


def test_a_full_queue_refuses_and_says_when_to_retry() -> None:
    small = tiny_engine(max_waiting_requests=3)
    small.add("a", PROMPT, greedy(n=2))
    with pytest.raises(QueueFullError, match="2 requests are waiting, the limit is 3") as caught:
        small.add("b", PROMPT, greedy(n=2))
    assert caught.value.retry_after > 0
    small.add("c", PROMPT, greedy())
    run(small)


def test_urgent_request_takes_the_place_of_the_least_urgent_youngest_one() -> None:
    full = tiny_engine(max_num_seqs=1, max_num_batched_tokens=8, max_waiting_requests=4)
    full.add("begun", PROMPT, greedy(), priority=9)
    full.step()
    for id, priority, n in (("a", 5, 1), ("b", 5, 1), ("c", 1, 1), ("d", 3, 1)):
        full.add(id, PROMPT, greedy(n=n), priority=priority)
    with pytest.raises(QueueFullError):
        full.add("not more urgent", PROMPT, greedy(), priority=5)
    with pytest.raises(QueueFullError):
        full.add("too many", PROMPT, greedy(n=4), priority=1)
    assert full.displaced == {}
    with pytest.raises(RequestError):
        full.add("bad", [VOCABULARY], greedy(), priority=0)
    assert full.displaced == {}
    full.add("urgent", PROMPT, greedy(), priority=0)
    assert list(full.displaced) == ["b"]
    assert full.displaced["b"].retry_after >= 1.0
    full.add("two", PROMPT, greedy(n=2), priority=2)
    assert list(full.displaced) == ["b", "a", "d"]
    assert full.knows("begun")
    full.displaced.clear()
    ended = []
    while full.has_work:
        ended += [each.request.id for each in full.step() if each.finish_reason is not None]
    assert ended == ["begun", "urgent", "c", "two", "two"]
    full.check_idle()


def test_one_request_at_a_time_gives_the_same_tokens(plain: list[int]) -> None:
    alone = tiny_engine(max_num_seqs=1, max_num_batched_tokens=2)
    requests = [alone.add(str(i), PROMPT, greedy())[0] for i in range(2)]
    sampled = alone.add("s", PROMPT, SamplingParams(seed=3, max_tokens=12, ignore_eos=True))[0]
    run(alone)
    for request in requests:
        assert request.tokens[len(PROMPT) :] == plain
    assert sampled.tokens[len(PROMPT) :] == tokens_alone(engine(), PROMPT, sampled.params)


def test_stats_count_what_happened() -> None:
    before = engine().stats()
    for i in range(3):
        engine().add(str(i), [i + 50] * 20, greedy(max_tokens=5))
    engine().add("aborted", [9] * 20, greedy())
    engine().step()
    during = engine().stats()
    assert during.num_requests_running + during.num_requests_waiting == 4
    assert during.kv_cache_usage > 0
    engine().abort("aborted")
    run(engine())
    after = engine().stats()
    assert after.generation_tokens - before.generation_tokens == 15
    assert 60 <= after.prompt_tokens - before.prompt_tokens <= 80
    assert (after.num_requests_running, after.num_requests_waiting) == (0, 0)
    assert after.kv_cache_usage == 0
    for reason, count in (("length", 3), ("abort", 1)):
        assert after.requests_finished[reason] - before.requests_finished.get(reason, 0) == count
    assert after.step_seconds > before.step_seconds


EXTREME_PARAMS: dict[str, dict[str, Any]] = {
    "top_k beyond int32": {"top_k": 2**31},
    "top_k beyond int64": {"top_k": 2**63},
    "top_p is 0 in float32": {"top_p": 1e-300},
    "top_p is subnormal": {"top_p": 1e-40},
    "bias at a low temperature": {"top_p": 0.5, "temperature": 1e-6, "logit_bias": {7: 1e30}},
    "penalties": {"repetition_penalty": 0.01, "frequency_penalty": -2.0, "top_p": 0.9},
    "seed": {"seed": 2**64 + 5, "n": 2},
    "draft": {"max_draft_tokens": 10**30},
    "tokens": {"max_tokens": 10**30, "stop_token_ids": tuple(range(VOCABULARY))},
    "minimum": {"max_tokens": None, "min_tokens": 10**30, "stop_token_ids": (1,)},
    "priority": {},
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("extreme", EXTREME_PARAMS)
def test_extreme_parameters_harm_nobody(extreme: str, plain: list[int]) -> None:
    params = SamplingParams(**({"ignore_eos": True} | EXTREME_PARAMS[extreme]))
    priority = 10**400 if extreme == "priority" else 0
    requests = engine().add("extreme", PROMPT, params, priority=priority)
    (beside,) = engine().add("beside", PROMPT, greedy())
    run(engine())
    assert all(each.finish_reason in ("length", "stop") for each in requests)
    assert beside.tokens[len(PROMPT) :] == plain


def test_what_others_asked_is_only_found_with_the_same_salt() -> None:
    prompt = [(5 * i + 1) % VOCABULARY for i in range(64)]
    found, tokens = [], []
    for salt in ("", "a", "a", "b", "", "\ud800"):
        (request,) = engine().add("r", prompt, greedy(), cache_salt=salt)
        run(engine())
        found.append(request.cached_tokens)
        tokens.append(request.tokens)
    assert found == [0, 0, 48, 0, 48, 0]
    assert all(each == tokens[0] for each in tokens)


def test_steps_are_counted_by_their_tokens() -> None:
    engine = tiny_engine(num_pages=24, max_num_batched_tokens=16, enable_prefix_caching=False)
    before = engine.stats()  # other tests may have used this engine
    engine.add("r", [7] * 40, greedy(max_tokens=4, ignore_eos=True))
    run(engine)
    stats = engine.stats()
    new = Counter(stats.step_tokens) - Counter(before.step_tokens)
    assert new == {16: 2, 8: 1, 1: 3}
    assert stats.num_steps - before.num_steps == 6
    assert stats.kv_pages == 24 - 1, "the first one holds nothing"


def test_all_times_are_of_the_clock_that_was_given() -> None:
    ticks = itertools.count(1000.0)
    ours = tiny_engine(compiler=engine().executor.compiler, clock=lambda: next(ticks))
    (request,) = ours.add("r", PROMPT, greedy(max_tokens=3))
    run(ours)
    times = [request.arrival, request.scheduled, request.first_token, request.ended]
    assert times == sorted(times)
    assert len(set(times)) == 4
    assert 1000.0 <= request.arrival < request.ended < next(ticks)
    assert ours.stats().step_seconds >= ours.stats().num_steps
