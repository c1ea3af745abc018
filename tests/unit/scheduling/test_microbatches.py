"""A plan of m microbatches has m steps under way, each of one group of the requests."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from fjx.engine.engine import Engine
from fjx.pipeline.step_output import StepOutput
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.drafter import ContinueDrafting, Draft, PromptLookup
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.plan_cases import Ask, deep_engine, even, expected
from tests.unit.engine.tiny import run
from tests.unit.speculation.runtime.draft_cases import Guesses

LONG = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
PROMPTS = [(3 + i, 1, 4) for i in range(8)]


class Watch:
    """Which groups' steps were sent and read, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.in_flight: Counter[int] = Counter()

    def sent(self, group_id: int) -> None:
        self.events.append(("sent", group_id))
        self.in_flight[group_id] += 1

    def read(self, group_id: int) -> None:
        self.events.append(("read", group_id))
        self.in_flight[group_id] -= 1

    def take(self) -> list[tuple[str, int]]:
        """The events since this was last called."""
        events, self.events = self.events, []
        return events


@contextmanager
def watched(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch, executor = Watch(), engine.replicas[0].local
    dispatch = executor.dispatch

    def watched_dispatch(batch: Any, group_id: int = 0, *more: Any) -> StepOutput:
        output = dispatch(batch, group_id, *more)
        watch.sent(group_id)
        read_tokens = output.read_tokens

        def watched_read() -> list[int]:
            watch.read(group_id)
            return read_tokens()

        monkeypatch.setattr(output, "read_tokens", watched_read)
        return output

    with monkeypatch.context() as patch:
        patch.setattr(executor, "dispatch", watched_dispatch)
        yield watch
        run(engine)


def begin(engine: Engine, count: int, steps: int = 9) -> list[Request]:
    """So many requests, all decoding."""
    requests = [
        engine.add(str(i), list(prompt), LONG)[0] for i, prompt in enumerate(PROMPTS[:count])
    ]
    for _ in range(steps):
        engine.step()
    return requests


def assert_right(requests: Sequence[Request]) -> None:
    for request, prompt in zip(requests, PROMPTS, strict=False):
        assert request.tokens[3:] == expected(Ask(prompt, LONG)).tokens


@pytest.mark.parametrize("num_groups", [2, 4])
def test_a_part_is_read_while_the_steps_of_all_others_are_under_way(
    num_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = deep_engine(even(4, microbatches=num_groups))
    with watched(engine, monkeypatch) as watch:
        requests = begin(engine, 8)
        for _ in range(2 * num_groups):
            watch.take()
            engine.step()
            (sent, group_id), (read, other) = watch.take()
            assert (sent, read, group_id) == ("sent", "read", other)
            assert watch.in_flight == dict.fromkeys(range(num_groups), 1)
    assert_right(requests)


def test_a_new_request_runs_in_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = deep_engine(even(4, microbatches=4))
    with watched(engine, monkeypatch):
        requests = begin(engine, 6)
        (new,) = engine.add("new", list(PROMPTS[6]), LONG)
        engine.step()
        assert new.scheduled is not None
    assert_right([*requests, new])


def test_a_lone_request_runs_as_with_one_microbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for num_groups in (1, 4):
        engine = deep_engine(even(4, microbatches=num_groups))
        with watched(engine, monkeypatch) as watch:
            requests = begin(engine, 1)
        seen.append(watch.take())
        assert_right(requests)
    assert seen[0] == seen[1]
    assert seen[0][:4] == [("sent", 0), ("sent", 0), ("read", 0), ("sent", 0)]


def test_parts_without_work_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = deep_engine(even(4, microbatches=12))
    with watched(engine, monkeypatch) as watch:
        begin(engine, 3)
        watch.take()
        for _ in range(3):
            engine.step()
        num_groups = [group_id for what, group_id in watch.take() if what == "sent"]
        assert sorted(num_groups) == [0, 1, 2]


@pytest.mark.parametrize("drafts", [False, True])
def test_a_long_prompt_goes_on_in_the_steps_of_all_parts(
    drafts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = deep_engine(even(4, microbatches=4), max_draft_rows=20)
    prompt = tuple((7 * i) % 300 for i in range(200))
    buckets = engine.executor.limits.row_buckets
    if drafts:
        speculator = Speculator(PromptLookup(2), Fixed(2), buckets)
        monkeypatch.setattr(engine, "speculator", speculator)
    requests = begin(engine, 4)
    (long,) = engine.add("long", list(prompt), LONG)
    (gone,) = engine.add("gone", list(prompt[::-1]), LONG)
    steps = 0
    while long.first_token is None:
        engine.step()
        steps += 1
        if steps == 5:
            engine.abort("gone")
    chunks = -(-len(prompt) // (engine.scheduler.max_num_batched_tokens - 1))
    assert steps < 3 * chunks, "a chunk in every fourth step only would take 4 times as many"
    assert gone.finished
    run(engine)
    assert_right(requests)
    assert long.tokens[len(prompt) :] == expected(Ask(prompt, LONG)).tokens


class Watching(Guesses):
    """Notes what is in flight while it drafts."""

    def __init__(self, watch: Watch, known: dict[str, list[int]]) -> None:
        super().__init__(random.Random(0), 0.3)
        self.watch, self.known = watch, known
        self.seen: list[tuple[set[int], set[int]]] = []

    def propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        num_groups = {request.slot % 2 for request in requests}
        self.seen.append(
            (num_groups, {group_id for group_id, n in self.watch.in_flight.items() if n})
        )
        return super().propose(requests, lengths, continue_drafting)


def test_the_other_part_stays_in_flight_while_one_is_drafted_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = deep_engine(even(4, microbatches=2), max_draft_rows=20)
    known = {str(i): expected(Ask(prompt, LONG)).tokens for i, prompt in enumerate(PROMPTS)}
    with watched(engine, monkeypatch) as watch:
        drafter = Watching(watch, known)
        buckets = engine.executor.limits.row_buckets
        monkeypatch.setattr(engine, "speculator", Speculator(drafter, Fixed(2), buckets))
        requests = begin(engine, 8, steps=6)
        assert len(drafter.seen) >= 4
        for num_groups, in_flight in drafter.seen[1:]:
            (group_id,) = num_groups
            assert in_flight == {1 - group_id}
    assert_right(requests)


def test_the_gap_that_is_observed_is_that_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now, gaps = 0.0, list[float]()
    engine = deep_engine(even(4, microbatches=4), clock=lambda: now)

    class Pilot:
        """Hears of steps."""

        def step(self, now: float, seconds: float) -> None:
            gaps.append(seconds)

        def arrived(self, *_: Any) -> None: ...

        first_token = ended = arrived

        def due(self, now: float) -> bool:
            return False

    monkeypatch.setattr(engine, "autopilot", Pilot())
    begin(engine, 8)
    for _ in range(6):
        now += 1.0
        engine.step()
    assert gaps[-2:] == [4.0, 4.0], "a group's step is every fourth one"
    run(engine)


def test_a_change_of_plan_ends_while_all_parts_go_on() -> None:
    engine = deep_engine(even(4, microbatches=4))
    requests = begin(engine, 8, steps=5)
    engine.regranularize(even(2, microbatches=2))
    engine.plans.wait(120)
    steps = 0
    while engine.plans.active:
        engine.step()
        steps += 1
    last = engine.plans.status().last
    assert last is not None
    assert last.state == "done"
    assert all(not request.finished for request in requests)
    assert steps < 40
    run(engine)
    assert_right(requests)
    engine.regranularize(even(4, microbatches=4))
    engine.plans.wait(120)
    while engine.plans.active:
        engine.step()
