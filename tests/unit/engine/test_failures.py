"""Something goes wrong with one request: it ends with an error, the others with their tokens."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fjx.engine.detokenizer import Detokenizer
from fjx.engine.engine import Engine
from fjx.engine.progress import Progress
from fjx.errors import RequestError
from fjx.sampling_params import SamplingParams
from fjx.scheduling.batch_builder import BatchBuilder
from fjx.scheduling.request import Request
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.tiny import run, tiny_engine, tokens_alone
from tests.unit.speculation.runtime.draft_cases import Guesses

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = {"a": [1, 2, 3], "bad": [4, 5, 6, 7], "c": [8] * 40}


def serve(engine: Engine) -> tuple[dict[str, Request], list[Progress]]:
    """All prompts at once, to their ends."""
    requests = {id: engine.add(id, prompt, GREEDY)[0] for id, prompt in PROMPTS.items()}
    progress: list[Progress] = []
    while engine.has_work:
        progress += engine.step()
    engine.check_idle()
    return requests, progress


def expect_only_the_bad_one_failed(
    engine: Engine, requests: dict[str, Request], progress: list[Progress]
) -> None:
    ends = [(p.request.id, p.finish_reason) for p in progress if p.finish_reason is not None]
    assert sorted(ends) == [("a", "length"), ("bad", "error"), ("c", "length")]
    assert requests["bad"].error == "ZeroDivisionError: of the bad one"
    for id in ("a", "c"):
        assert requests[id].error is None
        assert requests[id].tokens[requests[id].prompt_len :] == tokens_alone(
            engine, PROMPTS[id], GREEDY
        )
    counts = engine.stats().requests_finished
    assert counts["error"] >= 1


@pytest.mark.parametrize("fails_at", [0, 1, 5])
@pytest.mark.parametrize("overlap", [False, True])
def test_what_cannot_be_built_ends_alone(
    fails_at: int, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its first step, in the middle of the prefill of others, and while it decodes."""
    engine = tiny_engine(overlap=overlap, max_num_batched_tokens=16)
    builds: list[str] = []
    build = BatchBuilder.build

    def breaks(self: BatchBuilder, scheduled: Any, group_id: int = 0) -> Any:
        for rows in scheduled:
            if rows.request.id == "bad":
                builds.append("bad")
                if len(builds) > fails_at:
                    raise ZeroDivisionError("of the bad one")
        return build(self, scheduled, group_id)

    monkeypatch.setattr(BatchBuilder, "build", breaks)
    requests, progress = serve(engine)
    expect_only_the_bad_one_failed(engine, requests, progress)
    assert (requests["bad"].num_output > 0) == (fails_at > overlap)


def test_a_step_that_fails_for_no_single_request_ends_its_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = tiny_engine()
    build = BatchBuilder.build

    def breaks(self: BatchBuilder, scheduled: Any, group_id: int = 0) -> Any:
        if len(scheduled) > 1:
            raise ZeroDivisionError("of two")
        return build(self, scheduled, group_id)

    monkeypatch.setattr(BatchBuilder, "build", breaks)
    requests, _ = serve(engine)
    assert {request.finish_reason for request in requests.values()} == {"error"}
    monkeypatch.undo()
    assert len(tokens_alone(engine, PROMPTS["a"], GREEDY)) == 12


@pytest.mark.parametrize("tokens", [0, 3])
def test_what_cannot_be_read_ends_alone(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    add = Detokenizer.add

    def breaks(self: Detokenizer, request: Request, token: int) -> Any:
        if request.id == "bad" and request.num_output > tokens:
            raise ZeroDivisionError("of the bad one")
        return add(self, request, token)

    monkeypatch.setattr(Detokenizer, "add", breaks)
    requests, progress = serve(engine)
    expect_only_the_bad_one_failed(engine, requests, progress)
    assert requests["bad"].num_output == tokens + 1


class BreakingGuesses(Guesses):
    """Fails in one of its methods."""

    breaks: str

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "breaks"):
            raise ZeroDivisionError("of the drafter")
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("breaks", ["propose", "feed", "forget", "rounds"])
def test_a_drafter_that_fails_is_left_out(breaks: str) -> None:
    engine = tiny_engine(max_draft_rows=16)
    plain = {id: tokens_alone(engine, prompt, GREEDY) for id, prompt in PROMPTS.items()}
    guesses = BreakingGuesses.__new__(BreakingGuesses)
    guesses.breaks = ""
    guesses.__init__(random.Random(1), 0.3)  # type: ignore[misc]
    guesses.known = plain
    engine.speculator = Speculator(guesses, Fixed(3), engine.executor.limits.row_buckets)
    requests = {id: engine.add(id, prompt, GREEDY)[0] for id, prompt in PROMPTS.items()}
    while not any(request.drafted_tokens for request in requests.values()):
        engine.step()
    assert engine.has_work
    guesses.breaks = breaks
    while engine.has_work:
        engine.step()
    engine.check_idle()
    speculator, engine.speculator = engine.speculator, None
    assert speculator is None
    assert {id: r.tokens[r.prompt_len :] for id, r in requests.items()} == plain


class BreakingPolicy:
    """Fails in one of its methods."""

    def __init__(self, breaks: str) -> None:
        self.breaks = breaks
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **seen: Any) -> Any:
            self.asked.add(name)
            if name == self.breaks:
                raise ZeroDivisionError("of the policy")
            return SimpleNamespace(target=None) if name == "observe_and_decide" else name == "due"

        return call


@pytest.mark.parametrize(
    "breaks", ["due", "observe_and_decide", "arrived", "first_token", "step", "ended"]
)
def test_a_policy_that_fails_leaves_the_plan_as_it_is(breaks: str) -> None:
    engine = tiny_engine()
    plain = tokens_alone(engine, PROMPTS["a"], GREEDY)
    policy = BreakingPolicy(breaks)
    engine.autopilot = policy  # type: ignore[assignment]
    assert tokens_alone(engine, PROMPTS["a"], GREEDY) == plain
    assert breaks in policy.asked
    assert engine.autopilot is None


@pytest.mark.parametrize(
    "odd",
    [{"priority": "x"}, {"priority": None}, {"priority": 0.5}, {"cache_salt": 5}],
    ids=str,
)
def test_what_would_confuse_the_queue_is_refused(odd: dict[str, Any]) -> None:
    engine = tiny_engine(max_waiting_requests=50)
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    for index in range(9):  # more than may run: some are compared with whoever comes
        engine.add(f"before {index}", [1] * 20, params)
    with pytest.raises(RequestError, match=f"^{next(iter(odd))} must be "):
        engine.add("odd", [1] * 20, params, **odd)
    with pytest.raises(RequestError, match=r"^request_id must be "):
        engine.add(7, [1] * 20, params)  # type: ignore[arg-type]
    while engine.has_work:
        engine.step()
    engine.check_idle()


@pytest.mark.parametrize("begun", [0, 1])
def test_a_request_that_cannot_be_begun_leaves_nothing_behind(
    begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine()
    begin = Detokenizer.begin

    def breaks(self: Detokenizer, request: Request) -> None:
        if request.index >= begun:
            raise ZeroDivisionError("of the second completion")
        begin(self, request)

    monkeypatch.setattr(Detokenizer, "begin", breaks)
    with pytest.raises(ZeroDivisionError):
        engine.add("twice", PROMPTS["a"], replace(GREEDY, n=2))
    assert not engine.has_work
    assert not engine.knows("twice")
    engine.check_idle()
    monkeypatch.undo()
    engine.add("twice", PROMPTS["a"], replace(GREEDY, n=2))
    run(engine)


@pytest.mark.parametrize("params", [None, 5, {"max_tokens": 4}, "greedy"])
def test_parameters_of_a_wrong_type_are_refused(params: Any) -> None:
    engine = tiny_engine()
    with pytest.raises(RequestError, match="params must be SamplingParams"):
        engine.add("odd", [1, 2], params)
    engine.check_idle()
