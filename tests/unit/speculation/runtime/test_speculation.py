"""Speculation changes how fast tokens come, never which: any drafter, any lengths, any plan."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fjx.engine.engine import Engine
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request
from fjx.speculation.policy.frontiers import FrontierDepth
from fjx.speculation.policy.lengths import Fixed, RoundView
from fjx.speculation.runtime.draft_model import DraftModel
from fjx.speculation.runtime.drafter import NO_DRAFT, Draft, LookupOrHead, PromptLookup
from fjx.speculation.runtime.round_log import RoundLog
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.plan_cases import (
    GREEDY,
    MIXED,
    PLAIN_TARGETS,
    Ask,
    Served,
    answers,
    deep_engine,
    even,
    expected,
    finish_change,
)
from tests.unit.engine.tiny import staged, tiny_engine
from tests.unit.speculation.runtime.draft_cases import LONGEST, Guesses, head_drafter


@dataclass
class RandomLengths:
    """Drafts and verifies as many tokens as chance says."""

    source: random.Random
    name: str = "random"
    weighs_plain: bool = False

    def draft_lengths(self, view: RoundView) -> list[int]:
        return [self.source.randint(0, each.most) for each in view.requests]

    def continue_drafting(self, view: RoundView, confidences: Sequence[Sequence[float]]) -> bool:
        return self.source.random() < 0.8

    def verify_lengths(self, view: RoundView, confidences: Sequence[Sequence[float]]) -> list[int]:
        return [self.source.randint(0, len(each)) for each in confidences]


_ENGINES: list[Engine] = []


@pytest.fixture(autouse=True)
def _plain_again() -> Iterator[None]:
    """Engines are shared by tests."""
    yield
    for engine in _ENGINES:
        engine.speculator = None
    _ENGINES.clear()


class Always(FrontierDepth):
    """So many frontiers are under way, whether that pays or not."""

    def _choose(self) -> None: ...

    @property
    def depth(self) -> int:
        return self.deepest


def speculating(
    engine: Engine, drafter: Any, seed: int = 0, policy: Any = None, frontiers: int = 1
) -> Engine:
    """The engine with this drafter and, by default, random lengths."""
    policy = policy or RandomLengths(random.Random(seed))
    _ENGINES.append(engine)
    buckets = engine.executor.limits.row_buckets
    engine.speculator = Speculator(drafter, policy, buckets, Always(frontiers))
    return engine


def guesses(asks: Sequence[Ask], error_rate: float, seed: int = 0, name: str = "") -> Guesses:
    drafter = Guesses(random.Random(seed), error_rate)
    drafter.known = {f"{name}{i}": expected(ask).tokens for i, ask in enumerate(asks)}
    return drafter


def assert_same(engine: Engine, asks: Sequence[Ask] = MIXED) -> None:
    for ask, got in zip(asks, answers(engine, asks), strict=True):
        right = expected(ask)
        assert got.tokens == right.tokens, ask
        # The sum over the vocabulary depends on how many rows it is taken for, by its last bit.
        assert [each.sampled.logprob for each in got.logprobs] == pytest.approx(
            [each.sampled.logprob for each in right.logprobs], abs=1e-5
        )
    engine.check_idle()


def assert_same_while_the_plan_changes(engine: Engine, target: str) -> None:
    """From one stage to the target and back, with requests in flight."""
    served = Served(engine, MIXED)
    served.step(4)
    for wanted in (PLAIN_TARGETS[target], PLAIN_TARGETS["1 stage"]):
        engine.regranularize(wanted)
        engine.plans.wait(120)
        while engine.plans.active:
            served.step()
        assert engine.plans.status().last.state == "done"
        served.step(2)
    for ask, got in zip(MIXED, served.finish(), strict=True):
        assert got.tokens == expected(ask).tokens
    finish_change(engine)
    engine.check_idle()


PLANS = {
    "1 stage": even(1),
    "2 stages": even(2),
    "4 stages, 2 microbatches": even(4, microbatches=2),
}


@pytest.mark.parametrize("frontiers", [1, 2, 3])
@pytest.mark.parametrize("error_rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("plan", PLANS)
def test_tokens_and_logprobs_are_those_of_plain_decoding(
    plan: str, error_rate: float, frontiers: int
) -> None:
    engine = deep_engine(PLANS[plan], max_draft_rows=20)
    assert_same(speculating(engine, guesses(MIXED, error_rate), frontiers=frontiers))
    stats = engine.stats().speculation
    assert stats is not None
    assert stats.num_draft_tokens > 20
    if error_rate == 0.0:
        assert stats.num_accepted_tokens == stats.num_draft_tokens
    if error_rate == 1.0:
        assert stats.num_accepted_tokens < 0.05 * stats.num_draft_tokens


def test_right_frontiers_are_sent_before_the_ones_ahead_are_read() -> None:
    engine = deep_engine(max_draft_rows=20)
    ask = Ask((3, 1, 4, 1, 5), GREEDY)
    speculating(engine, guesses([ask], error_rate=0.0), policy=Fixed(3), frontiers=3)
    before = engine.stats().num_steps
    (request,) = engine.add("0", list(ask.prompt), ask.params)
    deepest = 0
    while engine.has_work:
        engine.step()
        deepest = max(deepest, request.sent_draft)
    assert request.tokens[request.prompt_len :] == expected(ask).tokens
    assert deepest == 8  # three frontiers of three tokens; the first is known from the one before
    # The prompt's step; one of four rows; then each frontier foresees the token before it, too.
    assert engine.stats().num_steps - before <= 2 + -(-(GREEDY.max_tokens - 5) // 3) + 1


@pytest.mark.parametrize("frontiers", [1, 3])
def test_the_log_of_a_request_accounts_for_every_token(frontiers: int) -> None:
    engine = deep_engine(max_draft_rows=20)
    speculating(engine, guesses(MIXED, error_rate=0.3), frontiers=frontiers)
    assert engine.speculator is not None
    log = engine.speculator.round_log = RoundLog()
    answers(engine, MIXED)
    steps, followed = log.rounds.steps, log.request
    assert followed is not None
    assert all(step.read is not None for step in steps)
    accepted = sum(step.accepted for step in steps)
    drafted = sum(len(step.drafted) for step in steps if not step.is_void)
    # With frontiers, the step that is under way at the first draft verifies a token of it, too.
    unseen = followed.drafted_tokens - drafted
    assert 0 <= followed.accepted_tokens - accepted <= unseen <= frontiers - 1
    committed = [token for step in steps for token in step.committed]
    assert committed == followed.tokens[-len(committed) :]
    assert any(step.is_void for step in steps) == (frontiers > 1)
    assert len(log.rounds.draftings) > 3


class LateGuesses(Guesses):
    """Guesses nothing before a request has some tokens."""

    def _guess(self, request: Request, length: int) -> Draft:
        return super()._guess(request, length) if request.num_output >= 6 else NO_DRAFT


def test_frontiers_begin_where_many_steps_without_drafts_are_under_way() -> None:
    engine = deep_engine(max_draft_rows=20)
    ask = Ask((3, 1, 4, 1, 5), GREEDY)
    drafter = LateGuesses(random.Random(0), error_rate=0.0)
    drafter.known = guesses([ask], error_rate=0.0).known
    speculating(engine, drafter, policy=Fixed(3), frontiers=3)
    (request,) = engine.add("0", list(ask.prompt), ask.params)
    while engine.has_work:
        engine.step()
    assert request.tokens[request.prompt_len :] == expected(ask).tokens
    assert request.accepted_tokens == request.drafted_tokens > GREEDY.max_tokens / 2


def test_right_drafts_save_steps() -> None:
    engine = deep_engine(max_draft_rows=20)
    ask = Ask((3, 1, 4, 1, 5), GREEDY)
    drafter = guesses([ask], error_rate=0.0)
    plain = engine.stats().num_steps
    assert_same(engine, [ask])
    plain = engine.stats().num_steps - plain
    before = engine.stats().num_steps
    assert_same(speculating(engine, drafter, policy=Fixed(LONGEST)), [ask])
    assert plain == GREEDY.max_tokens
    # one step for the prompt, then seven tokens in each
    assert engine.stats().num_steps - before == 1 + -(-(plain - 1) // (LONGEST + 1))


@pytest.mark.parametrize("synchronous", [False, True])
def test_prompt_lookup(synchronous: bool) -> None:
    engine = deep_engine(max_draft_rows=20, overlap=not synchronous)
    # Two tokens alone are possible, so that what comes has often been there before.
    biased = replace(MIXED[1].params, logit_bias={5: 40.0, 6: 40.0})
    repeating = [Ask((5, 6) * 8, biased), Ask((6, 6, 6, 5) * 5, replace(biased, temperature=0))]
    assert_same(speculating(engine, PromptLookup(LONGEST)), [*MIXED, *repeating])
    assert engine.stats().speculation.num_accepted_tokens > 0


@cache
def draft_replica(layers: int) -> Any:
    engine = tiny_engine(
        layers=layers,
        granule_layers=layers if layers < 8 else 1,
        one_bucket=True,
        enable_prefix_caching=False,
        confidences=True,
        num_pages=129,
    )
    return engine.replicas[0]


@pytest.mark.parametrize("frontiers", [1, 3])
def test_a_draft_model(frontiers: int) -> None:
    engine = deep_engine(max_draft_rows=20)
    drafter = DraftModel("small", draft_replica(2), LONGEST)
    assert_same(speculating(engine, drafter, frontiers=frontiers))


def test_a_model_that_drafts_for_itself_is_always_right() -> None:
    """Also when sampling, and with penalties for the first of its tokens: drafter and target choose
    by the same noise."""
    asks = [ask for ask in MIXED if not ask.params.edits_logits]
    engine = deep_engine(max_draft_rows=48)
    drafter = DraftModel("itself", draft_replica(8), LONGEST)
    assert_same(speculating(engine, drafter, policy=Fixed(3)), asks)
    stats = engine.stats().speculation
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 50


def test_a_draft_model_drafts_several_tokens_beside_bad_words() -> None:
    words = ("\u4e05\u4e06", "\u4e07")  # the tokens 5 and 6, and 7
    ask = Ask((5, 6, 9), SamplingParams(temperature=0, max_tokens=24, bad_words=words))
    engine = deep_engine(max_draft_rows=48)
    drafter = DraftModel("itself", draft_replica(8), LONGEST)
    assert_same(speculating(engine, drafter, policy=Fixed(3)), [ask])
    stats = engine.stats().speculation
    assert stats.num_draft_tokens > 2 * stats.num_drafts


@pytest.mark.parametrize("frontiers", [1, 3])
def test_drafts_are_given_up_where_pages_are_few(frontiers: int) -> None:
    engine = deep_engine(num_pages=17, max_draft_rows=20)
    preempted = engine.stats().num_preemptions
    drafter = guesses(MIXED, 0.2)
    assert_same(speculating(engine, drafter, policy=Fixed(LONGEST), frontiers=frontiers))
    assert engine.stats().num_preemptions > preempted


@pytest.mark.parametrize("frontiers", [1, 2])
@pytest.mark.parametrize("plan", PLANS)
def test_a_draft_head(plan: str, frontiers: int) -> None:
    engine = deep_engine(PLANS[plan], max_draft_rows=20, hidden=True)
    assert_same(speculating(engine, head_drafter(engine), policy=Fixed(3), frontiers=frontiers))
    assert engine.stats().speculation.num_draft_tokens > 100


def test_a_draft_head_stays_where_it_is_when_the_plan_changes() -> None:
    engine = deep_engine(max_draft_rows=20, hidden=True)
    speculating(engine, LookupOrHead(PromptLookup(LONGEST), head_drafter(engine)), policy=Fixed(3))
    served = Served(engine, MIXED)
    served.step(4)
    engine.regranularize(PLAIN_TARGETS["4 stages"])
    engine.plans.wait(120)
    for ask, got in zip(MIXED, served.finish(), strict=True):
        assert got.tokens == expected(ask).tokens
    assert finish_change(engine).state == "done"
    assert_same(engine)
    engine.regranularize(PLAIN_TARGETS["1 stage"])
    assert finish_change(engine).state == "done"


def test_a_request_can_ask_for_no_drafts() -> None:
    asks = [Ask(ask.prompt, replace(ask.params, max_draft_tokens=0)) for ask in MIXED]
    engine = deep_engine(max_draft_rows=20)
    drafter = Guesses(random.Random(0), 0.0)
    for ask, got in zip(MIXED, answers(speculating(engine, drafter), asks), strict=True):
        assert got.tokens == expected(ask).tokens
    assert engine.stats().speculation.num_draft_tokens == 0


def test_stop_strings_and_end_tokens_cut_an_accepted_draft() -> None:
    right = expected(Ask((3, 1, 4), GREEDY)).tokens
    stop = chr(0x4E00 + right[9])
    first = right.index(right[9])
    params = SamplingParams(temperature=0, max_tokens=40, stop=(stop,), ignore_eos=True)
    engine = deep_engine(max_draft_rows=20)
    drafter = Guesses(random.Random(0), 0.0)
    drafter.known["stops"] = right
    speculating(engine, drafter, policy=Fixed(LONGEST))
    (request,) = engine.add("stops", [3, 1, 4], params)
    text = ""
    while engine.has_work:
        text += "".join(progress.text for progress in engine.step())
    engine.check_idle()
    assert request.finish_reason == "stop"
    assert text == "".join(chr(0x4E00 + token) for token in right[:first])
    assert request.tokens[3:] == right[: first + 1]


@pytest.mark.parametrize("frontiers", [1, 2])
@pytest.mark.parametrize("target", ["2 stages", "8 stages", "2 replicas"])
def test_the_plan_changes_in_mid_draft(target: str, frontiers: int) -> None:
    engine = deep_engine(max_draft_rows=20)
    speculating(engine, guesses(MIXED, 0.3), seed=4, frontiers=frontiers)
    assert_same_while_the_plan_changes(engine, target)


requests = st.lists(
    st.tuples(st.integers(0, len(MIXED) - 1), st.integers(0, 5), st.booleans()),
    min_size=1,
    max_size=10,
)


@settings(max_examples=12, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    workload=requests,
    seed=st.integers(0, 99),
    error_rate=st.sampled_from([0.1, 0.5]),
    num_pages=st.sampled_from([17, 65]),
    frontiers=st.integers(1, 3),
)
def test_tokens_do_not_depend_on_schedule_and_drafts(
    workload: list, seed: int, error_rate: float, num_pages: int, frontiers: int
) -> None:
    """Arrivals, cancels, preemptions and drafts in any order."""
    engine = deep_engine(num_pages=num_pages, max_draft_rows=20)
    asks = [MIXED[index] for index, _, _ in workload]
    speculating(engine, guesses(asks, error_rate, seed), seed, frontiers=frontiers)
    running: list[tuple[Request, Ask]] = []
    cancelled = set()
    for i, (ask, (_, steps, cancel)) in enumerate(zip(asks, workload, strict=True)):
        (request,) = engine.add(str(i), list(ask.prompt), ask.params)
        running.append((request, ask))
        for _ in range(steps):
            engine.step()
        if cancel and i % 3 == 2:
            cancelled.add(request)
            engine.abort(str(i))
    while engine.has_work:
        engine.step()
    engine.check_idle()
    for request, ask in running:
        got, right = request.tokens[request.prompt_len :], expected(ask).tokens
        assert got == (right[: len(got)] if request in cancelled else right)


def test_a_draft_model_of_another_plan_survives_a_change_of_the_targets() -> None:
    engine = deep_engine(staged((8, (0,))), max_draft_rows=20)
    speculating(engine, DraftModel("small", draft_replica(2), LONGEST))
    served = Served(engine, MIXED)
    served.step(5)
    engine.regranularize(2)
    engine.plans.wait(120)
    for ask, got in zip(MIXED, served.finish(), strict=True):
        assert got.tokens == expected(ask).tokens
    finish_change(engine)
    engine.regranularize(PLAIN_TARGETS["1 stage"])
    assert finish_change(engine).state == "done"
    engine.check_idle()
