"""When pages run out, the youngest gives up its own and is computed again."""

from __future__ import annotations

from tests.unit.scheduling.schedule_cases import add, finish, make, read, request, step


def test_the_youngest_is_preempted_and_computes_everything_again() -> None:
    scheduler = make(pages=5)
    old, young = request(8, name="old", max_tokens=12), request(8, name="young", max_tokens=12)
    add(scheduler, old, young)
    assert step(scheduler) == {"old": 8, "young": 8}
    assert step(scheduler) == {"old": 1}, "old takes the last page, young gives up its own"
    assert scheduler.num_preemptions == young.preemptions == 1
    assert old.preemptions == 0
    assert scheduler.running == [old]
    assert (young.slot, young.computed, young.pages) == (-1, 0, [])
    assert young.num_output == 1
    while old in scheduler.running:
        assert step(scheduler) == {"old": 1}
    assert step(scheduler) == {"young": 9}, "prompt and the token it had"
    while scheduler.has_work:
        step(scheduler)
    assert young.num_output == 12
    scheduler.check()


def test_low_priority_is_preempted_before_the_young() -> None:
    scheduler = make(pages=5)
    low, high = request(8, name="low", priority=1), request(8, name="high")
    add(scheduler, low)
    step(scheduler)
    add(scheduler, high)
    step(scheduler)
    step(scheduler)
    assert scheduler.running == [high]
    assert scheduler.waiting == [low]


def test_a_preempted_request_waits_until_the_host_has_read_its_token() -> None:
    scheduler = make(pages=5)
    old, young = request(8, max_tokens=12), request(8, max_tokens=12)
    add(scheduler, old, young)
    in_flight = scheduler.schedule()
    assert [granted.request for granted in scheduler.schedule()] == [old]
    assert young.unread == 1
    finish(scheduler, old)
    assert scheduler.schedule() == [], "young's token exists on the device only"
    read(scheduler, in_flight)
    (granted,) = scheduler.schedule()
    assert (granted.request, granted.count) == (young, 9)


def test_rows_of_a_preempted_request_return_to_the_budget() -> None:
    scheduler = make(pages=4)
    young, old, other = request(1, name="young"), request(8, name="old"), request(1, name="other")
    old.arrival, other.arrival = -2.0, -1.0
    add(scheduler, young)
    step(scheduler)
    add(scheduler, old, other)
    assert step(scheduler) == {"young": 1, "old": 8, "other": 1}
    scheduler.max_num_batched_tokens = 2
    assert step(scheduler) == {"old": 1, "other": 1}, "old takes young's page, other its row"
    assert scheduler.waiting == [young]
    scheduler.check()


def test_a_preempted_request_loses_its_draft() -> None:
    scheduler = make(pages=4, seqs=2, drafts=4)
    old, young = request(7, max_tokens=12), request(7, max_tokens=12)
    add(scheduler, old, young)
    step(scheduler)
    step(scheduler)
    young.extend_draft([1, 2], [0.5, 0.5])
    scheduler.schedule()
    assert young.slot < 0
    assert young.draft == []


def test_the_youngest_is_preempted_in_whichever_part_it_is() -> None:
    scheduler = make(pages=4)
    old, young = request(8, max_tokens=12), request(8, max_tokens=12)
    add(scheduler, old, young)
    ((of_old,), (of_young,)) = scheduler.schedule(0, 2), scheduler.schedule(1, 2)
    assert (of_old.request, of_young.request) == (old, young)
    read(scheduler, [of_old])
    assert [granted.request for granted in scheduler.schedule(0, 2)] == [old]
    assert (young.slot, young.unread) == (-1, 1), "its step is under way, and will bring a token"
    finish(scheduler, old)
    assert not any(scheduler.has_rows(group_id, 2) for group_id in (0, 1))
    read(scheduler, [of_young])
    (granted,) = scheduler.schedule(0, 2)
    assert (granted.request, granted.count) == (young, 9), "it goes on in another group"
    scheduler.check()
