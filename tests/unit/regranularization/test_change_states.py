"""Any sequence of requests, steps, cancellations and changes of plan gives every request the tokens
that it gets alone on one device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import fjx.regranularization.change as regranularize
from fjx.engine.engine import Engine, Progress
from fjx.errors import RegranularizationBusyError
from fjx.outputs import EngineStats
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request
from tests.unit.engine.plan_cases import (
    PATIENCE,
    PLAIN_TARGETS,
    TENSOR_TARGETS,
    Ask,
    change,
    deep_engine,
    even,
    expected,
    is_near_tie,
)
from tests.unit.engine.tiny import VOCABULARY

# Few distinct prompts and parameters: what they give alone is computed once.
PROMPTS = st.builds(
    lambda stem, length: tuple((stem * 37 + 11 * i) % VOCABULARY for i in range(length)),
    st.integers(0, 2),
    st.sampled_from([1, 16, 33, 90]),
)
SAMPLING = (
    SamplingParams(temperature=0, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, seed=1, max_tokens=40),
    SamplingParams(temperature=0.8, seed=2, repetition_penalty=1.2, max_tokens=40),
    SamplingParams(temperature=0.8, seed=3, logprobs=2, max_tokens=20),
    SamplingParams(temperature=0.8, seed=4, n=2, max_tokens=30),
)
GREEDY = (
    SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=2),
    SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=2),
)
NUM_PAGES = 21


@cache
def changing(targets: tuple[str, ...]) -> Engine:
    """An engine with few pages and the programs of all these plans."""
    engine = deep_engine(num_pages=NUM_PAGES)
    for name in targets:
        change(engine, TARGETS[name])
    return engine


TARGETS: dict[str, Any] = {**PLAIN_TARGETS, **TENSOR_TARGETS}


class PlanChanges(RuleBasedStateMachine):
    """Requests come and go while the plan changes."""

    targets: ClassVar[tuple[str, ...]] = tuple(PLAIN_TARGETS)
    sampling: ClassVar[Sequence[SamplingParams]] = SAMPLING

    def __init__(self) -> None:
        super().__init__()
        self.engine = self.engine_of()
        change(self.engine, even(1))
        self.engine.check_idle()
        self.slices = pytest.MonkeyPatch()
        self.slices.setattr(regranularize, "_SLICE_BYTES", 1)
        self.asked: list[tuple[Request, Ask]] = []
        self.ended: set[Request] = set()
        self.cancelled: set[Request] = set()

    def engine_of(self) -> Engine:
        return changing(self.targets)

    @rule(prompts=st.lists(PROMPTS, min_size=1, max_size=4), kind=st.integers(0, 99))
    def add(self, prompts: list[tuple[int, ...]], kind: int) -> None:
        for number, prompt in enumerate(prompts, start=kind):
            self.add_one(prompt, self.sampling[number % len(self.sampling)])

    def add_one(self, prompt: tuple[int, ...], params: SamplingParams) -> None:
        for request in self.engine.add(str(len(self.asked)), list(prompt), params):
            seed = None if params.seed is None else params.seed + request.index
            alone = dataclasses.replace(params, n=1, seed=seed)
            self.asked.append((request, Ask(prompt, alone)))

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.note(self.engine.step())

    @precondition(lambda self: self.asked)
    @rule(number=st.integers(0, 99))
    def cancel(self, number: int) -> None:
        request, _ = self.asked[number % len(self.asked)]
        progress = self.engine.abort(request.id)
        self.cancelled |= {each.request for each in progress}
        self.note(progress)

    # How far a change of plan is depends on a thread, so what is drawn must not depend on it.

    @rule(number=st.integers(0, 99), steps_to_abort=st.sampled_from([None] * 4 + [0, 2]))
    def begin(self, number: int, steps_to_abort: int | None) -> None:
        target = TARGETS[self.targets[number % len(self.targets)]]
        # A number keeps the replicas, for which there may be too few devices.
        if isinstance(target, int) and len(self.engine.replicas) * target > 8:
            target = even(target)
        if self.engine.plans.active:
            with pytest.raises(RegranularizationBusyError):
                self.engine.regranularize(target)
            return
        self.engine.regranularize(target)
        if steps_to_abort is not None:
            self.step(steps_to_abort)
            self.engine.plans.abort("the test wants it")

    @rule(steps=st.integers(0, 6), then_abort=st.sampled_from([False, False, False, True]))
    def wait_until_prepared(self, steps: int, then_abort: bool) -> None:
        self.engine.plans.wait(PATIENCE)
        self.step(steps)
        if then_abort:
            self.engine.plans.abort("the test wants it")

    @invariant()
    def no_request_is_lost(self) -> None:
        stats = self.engine.stats()
        known = stats.num_requests_running + stats.num_requests_waiting
        assert known == len(self.asked) - len(self.ended)

    def note(self, progress: list[Progress]) -> None:
        for each in progress:
            if each.finish_reason is not None:
                assert each.request not in self.ended
                self.ended.add(each.request)

    def teardown(self) -> None:
        while self.engine.has_work or self.engine.plans.active:
            self.note(self.engine.step())
            self.engine.plans.wait(0.001)
        self.slices.undo()
        self.engine.check_idle()
        assert {request for request, _ in self.asked} == self.ended
        for request, ask in self.asked:
            self.check(ask, request.tokens[request.prompt_len :], request in self.cancelled)

    def check(self, ask: Ask, tokens: list[int], cancelled: bool) -> None:
        right = expected(ask).tokens
        assert tokens == (right[: len(tokens)] if cancelled else right)


class TensorPlanChanges(PlanChanges):
    """With tensor parallelism, where nearly equal logits may change places."""

    targets = tuple(TENSOR_TARGETS)
    sampling = GREEDY

    def check(self, ask: Ask, tokens: list[int], cancelled: bool) -> None:
        assert cancelled or len(tokens) == ask.params.max_tokens
        is_near_tie(ask, tokens)


MACHINE = settings(
    max_examples=20,
    stateful_step_count=30,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


_MAX_RUNS = 8


def run_until(
    machine: type[RuleBasedStateMachine], given: settings, came_by: Callable[[], dict[str, bool]]
) -> None:
    """Run a machine until it has come by all that it is for: what one run comes by changes with the
    modules that are loaded, because Hypothesis draws from their constants, too."""
    for number in range(_MAX_RUNS):
        run_state_machine_as_test(seed(number)(machine), settings=given)
        if all(came_by().values()):
            return
    assert [what for what, seen in came_by().items() if not seen] == []


def test_regranularization_at_any_time_changes_no_token() -> None:
    run_plan_changes(PlanChanges)


def test_regranularization_with_tensor_parallelism_changes_tokens_at_near_ties_only() -> None:
    run_plan_changes(TensorPlanChanges)


def run_plan_changes(machine: type[PlanChanges]) -> None:
    engine = changing(machine.targets)
    before = engine.stats()

    def came_by() -> dict[str, bool]:
        after = engine.stats()
        return {
            "preemptions": after.num_preemptions > before.num_preemptions,
            "prefix cache hits": after.prefix_cache_hits > before.prefix_cache_hits,
            "dirty pages": after.plan.moved_bytes["dirty"] > before.plan.moved_bytes["dirty"],
        } | switched(before, after)

    run_until(machine, MACHINE, came_by)
    assert engine.stats().compiles.get("hot_path", 0) == before.compiles.get("hot_path", 0)


def switched(before: EngineStats, after: EngineStats) -> dict[str, bool]:
    """By outcome, whether changes of plan ended so."""
    return {
        outcome: after.plan.switches.get(outcome, 0) > before.plan.switches.get(outcome, 0)
        for outcome in ("done", "aborted")
    }
