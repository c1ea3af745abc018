"""How long steps take, by when they were sent and read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fjx.scheduling.microbatches import Microbatch, MicrobatchGroup
from fjx.scheduling.scheduler import ScheduledRows
from fjx.speculation.policy.throttle import DraftMode, MeasuredRound, SpeculationThrottle
from fjx.speculation.runtime.step_times import Prepared, StepTimes, TimedStep, Work

NOTHING: Any = SimpleNamespace()


class Clocked:
    """Steps of the groups of one replica, all of which always have requests."""

    def __init__(self, num_groups: int) -> None:
        self.times = StepTimes()
        self.busy = [True] * num_groups
        self.scheduler: Any = self

    def running_in(self, group_id: int, num_groups: int) -> list[None]:
        return [None] * self.busy[group_id]

    def send(
        self,
        group_id: int,
        at: float,
        mode: DraftMode = DraftMode.COOLDOWN,
        drafting: float = 0.0,
        rows: tuple[ScheduledRows, ...] = (),
    ) -> list[Microbatch]:
        group = MicrobatchGroup(self.scheduler, group_id, len(self.busy))
        step = [Microbatch([*rows], NOTHING, NOTHING, at, group)]
        prepared = Prepared(mode=mode, drafted=drafting > 0, drafting_seconds=drafting)
        self.times.sent(step, prepared, at)
        return step

    def read(self, step: list[Microbatch], at: float) -> TimedStep:
        timed = self.times.read(step, at)
        assert timed is not None
        return timed


def test_a_step_that_overlaps_takes_the_time_between_two_readings() -> None:
    clocked = Clocked(1)
    first, second = clocked.send(0, 1.0), clocked.send(0, 1.001)
    assert clocked.read(first, 1.010).cycle is None, "there was none before"
    timed = clocked.read(second, 1.025)
    assert (timed.cycle, timed.seconds) == (pytest.approx(0.015), pytest.approx(0.015))
    assert timed.is_plain


def test_drafting_for_a_step_is_no_part_of_it_but_of_the_cycle() -> None:
    clocked = Clocked(1)
    clocked.read(clocked.send(0, 1.0), 1.010)
    timed = clocked.read(clocked.send(0, 1.018, DraftMode.DRAFT, drafting=0.007), 1.030)
    assert timed.seconds == pytest.approx(0.013), "the host's other 1 ms counts"
    assert timed.cycle == pytest.approx(0.020)
    assert not timed.is_plain


def test_a_cycle_is_of_a_part_however_many_others_are_read_in_it() -> None:
    clocked = Clocked(3)
    in_flight = [clocked.send(group_id, 1.0) for group_id in range(3)]
    cycles = []
    for number in range(9):
        now = 1.010 + 0.010 * number
        in_flight.append(clocked.send(number % 3, now - 0.001))
        cycles.append(clocked.read(in_flight.pop(0), now))
    assert [each.cycle for each in cycles[:3]] == [None] * 3
    assert [each.cycle for each in cycles[3:]] == pytest.approx([0.030] * 6)
    assert {each.work.steps for each in cycles[3:]} == {3}
    assert all(each.is_plain for each in cycles[3:])


def test_the_work_of_a_cycle_is_that_of_all_parts_without_drafted_tokens() -> None:
    clocked = Clocked(2)
    prompt = ScheduledRows(NOTHING, 0, 30, 0)
    draft = ScheduledRows(NOTHING, 99, 4, 4)
    plain = ScheduledRows(NOTHING, 49, 1, 1)
    clocked.read(clocked.send(0, 1.0, rows=(draft,)), 1.010)
    clocked.read(clocked.send(1, 1.001, rows=(prompt, plain)), 1.020)
    timed = clocked.read(clocked.send(0, 1.011, rows=(draft, plain)), 1.030)
    assert timed.work == Work(steps=2, rows=33, decoding=3, context=30 + 50 + 103 + 50)


def test_a_step_had_ended_before_where_it_is_read_as_soon_as_the_host_comes_to_it() -> None:
    clocked = Clocked(2)
    first = clocked.send(0, 1.0)
    second = clocked.send(1, 1.020, drafting=0.019)
    assert clocked.read(first, 1.0201).was_late
    assert not clocked.read(second, 1.030).was_late
    alone = Clocked(1)
    first = alone.send(0, 1.0)
    alone.send(0, 1.020)
    assert not alone.read(first, 1.0201).was_late, "what the host did is what a step costs"


def test_a_cycle_in_which_another_part_was_drafted_for_is_not_plain() -> None:
    clocked = Clocked(2)
    in_flight = [clocked.send(group_id, 1.0) for group_id in (0, 1)]
    plain = []
    for number in range(8):
        now = 1.010 + 0.010 * number
        mode = DraftMode.DRAFT if number == 3 else DraftMode.COOLDOWN
        in_flight.append(clocked.send(number % 2, now - 0.001, mode))
        plain.append(clocked.read(in_flight.pop(0), now).is_plain)
    assert plain == [False, False, True, False, False, False, False, True]


def test_a_part_that_had_nothing_to_do_has_no_cycle() -> None:
    clocked = Clocked(2)
    clocked.read(clocked.send(0, 1.0), 1.010)
    clocked.busy[0] = False
    clocked.read(clocked.send(0, 1.011), 1.020)
    clocked.busy[0] = True
    other = clocked.send(1, 1.021)
    clocked.read(other, 1.030)
    timed = clocked.read(clocked.send(0, 1.031), 1.040)
    assert (timed.cycle, timed.seconds) == (None, pytest.approx(0.009))


def test_time_in_which_the_engine_was_idle_does_not_count() -> None:
    clocked = Clocked(1)
    clocked.read(clocked.send(0, 1.0), 1.010)
    timed = clocked.read(clocked.send(0, 2.0), 2.010)
    assert (timed.cycle, timed.seconds) == (None, pytest.approx(0.010))


def test_two_steps_can_be_read_at_once() -> None:
    clocked = Clocked(1)
    first, second = clocked.send(0, 1.0), clocked.send(0, 1.001)
    clocked.read(first, 1.050)
    assert clocked.read(second, 1.050).seconds == 0


def test_steps_that_were_never_read_are_forgotten() -> None:
    clocked = Clocked(1)
    lost, read = clocked.send(0, 1.0), clocked.send(0, 1.001)
    assert clocked.read(read, 1.010).seconds == pytest.approx(0.009)
    assert clocked.times.read(lost, 1.020) is None


class Pipeline:
    """Four stages that serve groups of four requests each, in the order of events of the engine."""

    STAGES, STAGE, DRAFTING, LONGER, REQUESTS = 4, 0.010, 0.004, 1.2, 4

    def __init__(self, num_groups: int, busy: int, tokens: float) -> None:
        self.clocked = Clocked(num_groups)
        self.throttle = SpeculationThrottle((2, 4, 8, 16))
        self.throttle.num_groups = num_groups
        self.num_groups, self.tokens = busy, tokens
        self.now = 0.0
        self.free, self.ends = [0.0] * self.STAGES, [0.0] * num_groups
        self.in_flight: list[tuple[int, float, list[Microbatch]]] = []

    def step(self, group_id: int) -> DraftMode:
        mode = self.throttle.next_mode(self.REQUESTS)
        drafts = mode is DraftMode.DRAFT
        self.read_until(group_id, 0 if drafts else 1)
        drafting = self.DRAFTING if drafts else 0.0
        self.now += drafting
        ready = max(self.now, self.ends[group_id])
        for stage in range(self.STAGES):
            ready = max(ready, self.free[stage]) + self.STAGE * (self.LONGER if drafts else 1)
            self.free[stage] = ready
        self.ends[group_id] = ready
        self.in_flight.append(
            (group_id, ready, self.clocked.send(group_id, self.now, mode, drafting))
        )
        self.now += 1e-5
        self.read_until(group_id, 1)
        return mode

    def read_until(self, group_id: int, most: int) -> None:
        while [of for of, _, _ in self.in_flight].count(group_id) > most:
            _, end, step = self.in_flight.pop(0)
            self.now = max(self.now, end) + 1e-5
            timed = self.clocked.read(step, self.now)
            if timed.cycle is None:
                continue
            if timed.prepared.mode is DraftMode.DRAFT:
                tokens = round(self.tokens * self.REQUESTS)
                made = MeasuredRound(
                    timed.work.steps, 4, 4, 400, timed.cycle, tokens, self.REQUESTS
                )
                self.throttle.observe_round(self.REQUESTS, made)
            elif timed.is_plain:
                self.throttle.observe_plain(4, 400, timed.cycle)

    def run(self, steps: int) -> list[DraftMode]:
        return [self.step(number % self.num_groups) for number in range(steps)]


@pytest.mark.parametrize(("num_groups", "busy"), [(1, 1), (4, 1), (4, 4), (8, 8)])
def test_speculation_rests_where_what_it_brings_takes_the_stages_longer(
    num_groups: int, busy: int
) -> None:
    modes = Pipeline(num_groups, busy, tokens=1.0).run(4000)
    assert modes.count(DraftMode.DRAFT) < 0.35 * len(modes)
    gaining = Pipeline(num_groups, busy, tokens=1.75)
    assert gaining.run(4000).count(DraftMode.DRAFT) > 0.9 * 4000
    assert gaining.throttle.saved_seconds > 0


def test_savings_are_those_of_the_clock_however_many_parts_save_at_once() -> None:
    for num_groups in (1, 4, 8):
        pipeline = Pipeline(num_groups, num_groups, tokens=1.75)
        pipeline.run(400)
        begun, before = pipeline.now, pipeline.throttle.saved_seconds
        rounds = pipeline.run(80 * num_groups).count(DraftMode.DRAFT)
        plain = rounds * 1.75 * Pipeline.STAGE * max(Pipeline.STAGES / num_groups, 1)
        saved = pipeline.throttle.saved_seconds - before
        assert saved == pytest.approx(plain - (pipeline.now - begun), rel=0.15)
