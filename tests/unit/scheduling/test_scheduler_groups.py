"""Where several steps are under way, each serves one group of the requests."""

from __future__ import annotations

from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import Scheduler
from tests.unit.scheduling.schedule_cases import add, finish, make, read, request


def parts_of(scheduler: Scheduler, num_groups: int) -> list[int]:
    """How many requests run in each group."""
    return [len(scheduler.running_in(group_id, num_groups)) for group_id in range(num_groups)]


def test_parts_stay_even_while_requests_come() -> None:
    scheduler = make(seqs=16, tokens=64)
    add(scheduler, *(request(4) for _ in range(6)))
    sizes = []
    for group_id in range(4):
        scheduler.schedule(group_id, 4)
        sizes.append(parts_of(scheduler, 4))
    assert sizes == [[2, 0, 0, 0], [2, 2, 0, 0], [2, 2, 2, 0], [2, 2, 2, 0]]
    assert [scheduler.has_rows(group_id, 4) for group_id in range(4)] == [True, True, True, False]
    add(scheduler, request(4), request(4))
    assert [scheduler.has_rows(group_id, 4) for group_id in range(4)] == [True] * 4
    for group_id in (0, 1, 2, 3):
        scheduler.schedule(group_id, 4)
    assert parts_of(scheduler, 4) == [2, 2, 2, 2]


def test_a_new_request_runs_in_the_next_step_whosever_turn_it_is() -> None:
    for turn in range(3):
        scheduler = make(seqs=9, tokens=64)
        add(scheduler, *(request(4) for _ in range(6)))
        for group_id in range(3):
            scheduler.schedule(group_id, 3)
        new = request(4)
        add(scheduler, new)
        assert new in [granted.request for granted in scheduler.schedule(turn, 3)]


def test_a_part_gets_no_request_beyond_its_share_or_its_slots() -> None:
    scheduler = make(seqs=2, tokens=64)
    add(scheduler, request(4), request(4), request(4))
    assert len(scheduler.schedule(0, 4)) == 1
    assert scheduler.schedule(0, 4)[0].start == 4, "the second request waits for another group"
    assert scheduler.schedule(2, 4) == [], "no slot is in this group"
    assert len(scheduler.schedule(1, 4)) == 1
    assert (parts_of(scheduler, 4), scheduler.num_waiting) == ([1, 1, 0, 0], 1)


def test_each_part_has_the_whole_budget() -> None:
    scheduler = make(seqs=4, tokens=8)
    add(scheduler, request(20), request(20))
    for group_id in (0, 1):
        assert [granted.count for granted in scheduler.schedule(group_id, 2)] == [8]


def test_drafts_have_their_whole_budget_in_each_part() -> None:
    scheduler = make(tokens=16, drafts=3)
    add(scheduler, request(2), request(2))
    in_flight = [rows for group_id in (0, 1) for rows in scheduler.schedule(group_id, 2)]
    read(scheduler, in_flight)
    for each in scheduler.running:
        scheduler.reserve(each, 3)
        each.extend_draft([1, 2, 3], [0.5] * 3)
    assert [scheduler.schedule(group_id, 2)[0].samples for group_id in (0, 1)] == [4, 4]


def with_a_long_prompt(prompt: int, pages: int = 64) -> tuple[Scheduler, Request, Request]:
    """A request of group 0 that decodes, and one of group 1 whose prompt is begun, 8 rows a
    step."""
    scheduler = make(pages=pages, tokens=8)
    short, long = request(2, name="short", max_tokens=40), request(prompt, name="long")
    add(scheduler, short)
    read(scheduler, scheduler.schedule(0, 2))
    add(scheduler, long)
    scheduler.schedule(1, 2)
    assert (short.slot, long.slot, long.computed) == (0, 1, 8)
    return scheduler, short, long


def test_a_long_prompt_goes_on_in_the_steps_of_other_parts() -> None:
    scheduler, short, long = with_a_long_prompt(30)
    of_short, carried = scheduler.schedule(0, 2)
    assert (of_short.request, of_short.count) == (short, 1)
    assert (carried.request, carried.start, carried.count, carried.samples) == (long, 8, 7, 0)
    (own,) = scheduler.schedule(1, 2)
    assert (own.start, own.count) == (15, 8)
    read(scheduler, [of_short])
    _, carried = scheduler.schedule(0, 2)
    assert (carried.start, carried.count) == (23, 6)
    (last,) = scheduler.schedule(1, 2)
    assert (last.start, last.count, last.samples) == (29, 1, 1), "it chooses in its own group"
    read(scheduler, [last])
    assert long.num_output == 1


def test_what_is_carried_takes_no_pages_from_others_and_can_be_preempted() -> None:
    scheduler, short, long = with_a_long_prompt(24, pages=4)
    for _ in range(3):
        granted = scheduler.schedule(0, 2)
        read(scheduler, granted)
    assert short.num_output >= 3
    assert scheduler.pool.num_available == 0
    while long.slot >= 0:
        read(scheduler, scheduler.schedule(0, 2))
    assert scheduler.running == [short], "the youngest gives way, though another group began it"
    scheduler.check()


def test_a_part_alone_carries_nothing() -> None:
    scheduler, short, long = with_a_long_prompt(30)
    finish(scheduler, short)
    assert not scheduler.has_rows(0, 2)
    assert scheduler.schedule(0, 2) == []
    assert [rows.request for rows in scheduler.schedule(1, 2)] == [long]
