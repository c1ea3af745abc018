"""Who runs next: the scheduling law without any model."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler
from tests.unit.scheduling.schedule_cases import SIZE, add, finish, make, read, request, step


def test_requests_start_in_order_of_priority_then_arrival() -> None:
    scheduler = make(seqs=1)
    first, second = request(4, name="first"), request(4, name="second")
    urgent = request(4, name="urgent", priority=-1)
    add(scheduler, second, first, urgent)  # the order of calls does not matter
    order = []
    while scheduler.has_work:
        order += step(scheduler)
    assert list(dict.fromkeys(order)) == ["urgent", "first", "second"]


def test_running_requests_get_their_row_before_anybody_starts() -> None:
    scheduler = make(tokens=8)
    add(scheduler, request(4, name="old"))
    assert step(scheduler) == {"old": 4}
    add(scheduler, request(20, name="new", priority=-5))
    assert step(scheduler) == {"old": 1, "new": 7}


def test_a_long_prompt_is_cut_into_chunks_and_chooses_a_token_after_the_last() -> None:
    scheduler = make(tokens=8)
    long = request(19)
    add(scheduler, long)
    chunks = []
    for _ in range(3):
        (granted,) = scheduler.schedule()
        chunks.append((granted.start, granted.count, granted.samples))
        read(scheduler, [granted])
    assert chunks == [(0, 8, False), (8, 8, False), (16, 3, True)]
    assert long.num_output == 1


def test_a_request_runs_ahead_of_the_host_but_not_beyond_its_end() -> None:
    scheduler = make()
    ahead = request(4, max_tokens=3)
    add(scheduler, ahead)
    steps = [scheduler.schedule() for _ in range(5)]
    assert [len(each) for each in steps] == [1, 1, 1, 0, 0]
    assert ahead.unread == 3


def test_no_more_requests_run_than_there_are_slots() -> None:
    scheduler = make(seqs=2)
    add(scheduler, *(request(2) for _ in range(5)))
    step(scheduler)
    assert len(scheduler.running) == 2
    assert scheduler.num_waiting == 3
    assert {each.slot for each in scheduler.running} == {0, 1}


def test_a_shared_prefix_is_not_computed_again_but_one_row_is() -> None:
    scheduler = make(share_prefixes=True, tokens=64)
    prompt = list(range(16))
    first = request(prompt, max_tokens=1)
    add(scheduler, first)
    step(scheduler)
    same, longer, other = request(prompt), request([*prompt, 7, 7]), request([9, *prompt])
    for each, computed in ((same, 12), (longer, 16), (other, 0)):
        add(scheduler, each)
        rows = step(scheduler)
        assert rows[each.id] == len(each.tokens) - each.num_output - computed
        assert each.cached_tokens == computed
    assert scheduler.prefix_hits == 28
    assert scheduler.prefix_queries == 16 + 16 + 18 + 17


def test_prompts_of_running_requests_are_shared_too() -> None:
    scheduler = make(share_prefixes=True, tokens=64)
    prompt = list(range(10))
    one, two = request(prompt), request(prompt)
    add(scheduler, one)
    step(scheduler)
    add(scheduler, two)
    step(scheduler)
    assert one.pages[:2] == two.pages[:2]
    assert one.pages[2] != two.pages[2]
    finish(scheduler, one)
    scheduler.check()
    finish(scheduler, two)
    scheduler.check()


def test_waiting_for_pages_does_not_count_as_prefix_lookups() -> None:
    scheduler = make(pages=4, share_prefixes=True)
    add(scheduler, request(12, name="big", max_tokens=4))
    step(scheduler)
    add(scheduler, request(12, name="blocked"))
    for _ in range(3):
        assert step(scheduler) == {"big": 1}
    assert scheduler.prefix_queries == 12


def drafting(scheduler: Scheduler, each: Request, draft: list[int]) -> list[ScheduledRows]:
    """The rows of a request that runs, and of others, once it has this draft."""
    each.extend_draft(draft, [0.5] * len(draft))
    return scheduler.schedule()


def test_a_draft_gets_a_row_for_each_token_behind_that_of_the_last_committed_one() -> None:
    scheduler = make(tokens=16, drafts=8)
    each = request(4)
    add(scheduler, each)
    step(scheduler)
    assert scheduler.reserve(each, 3) == 3
    (rows,) = drafting(scheduler, each, [7, 8, 9])
    assert (rows.start, rows.count, rows.samples) == (4, 4, 4)
    assert each.unread == 1
    assert [each.commit(token) for token in (7, 5)] == [True, False]
    assert each.tokens[-2:] == [7, 5]
    assert (each.draft, each.unread, each.computed) == ([], 0, len(each.tokens) - 1)
    assert rows.is_void
    (rows,) = scheduler.schedule()
    assert (rows.start, rows.count, rows.samples) == (6, 1, 1)


def test_a_wholly_accepted_draft_brings_one_token_more() -> None:
    scheduler = make(tokens=16, drafts=8)
    each = request(4)
    add(scheduler, each)
    step(scheduler)
    scheduler.reserve(each, 2)
    (rows,) = drafting(scheduler, each, [7, 8])
    assert [each.commit(token) for token in (7, 8, 3)] == [True] * 3
    assert not rows.is_void
    assert (each.computed, each.unread, each.accepted_tokens) == (len(each.tokens) - 1, 0, 2)


def test_drafts_are_cut_to_their_budget_and_take_no_other_requests_row() -> None:
    scheduler = make(tokens=6, drafts=3)
    first, second = request(2), request(2)
    add(scheduler, first, second)
    step(scheduler)
    for each in (first, second):
        scheduler.reserve(each, 4)
        each.extend_draft([1, 2, 3, 4], [0.5] * 4)
    assert [rows.samples for rows in scheduler.schedule()] == [4, 1]


def test_pages_are_reserved_only_while_others_have_enough() -> None:
    scheduler = make(pages=8, seqs=2, tokens=4, drafts=4)
    each = request(4)
    add(scheduler, each)
    step(scheduler)
    held = len(each.pages)
    assert scheduler.reserve(each, 40) < 40
    assert scheduler.pool.num_available >= 1 + 4 // SIZE + 1
    assert len(each.pages) > held


def test_requests_can_finish_in_every_state() -> None:
    scheduler = make(pages=5, seqs=2)
    old, young = request(8, max_tokens=12), request(8, max_tokens=12)
    waiting = [request(8), request(8)]
    add(scheduler, old, young, *waiting)
    step(scheduler)
    step(scheduler)  # preempts young
    for each in (waiting[0], young, old, waiting[1]):
        finish(scheduler, each)
        scheduler.check()
    assert not scheduler.has_work
    assert scheduler.pool.usage == 0


@settings(max_examples=60, derandomize=True)
@given(
    pages=st.integers(10, 24),
    seqs=st.integers(1, 5),
    tokens=st.integers(5, 20),
    share_prefixes=st.booleans(),
    late=st.integers(0, 1),
    num_groups=st.integers(1, 4),
    workload=st.lists(
        st.tuples(
            st.integers(1, 20),
            st.integers(1, 20),
            st.integers(0, 2),
            st.integers(0, 5),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_every_request_ends_and_nothing_leaks(
    pages: int,
    seqs: int,
    tokens: int,
    share_prefixes: bool,
    late: int,
    num_groups: int,
    workload: list[tuple[int, int, int, int, bool]],
) -> None:
    scheduler = make(pages, seqs, tokens, share_prefixes)
    upcoming = list(workload)
    unread: list[tuple[int, list[ScheduledRows]]] = []
    turn = 0
    everyone: list[tuple[Request, bool]] = []
    for _ in range(3000):
        while upcoming and (not everyone or upcoming[0][3] == 0 or not scheduler.has_work):
            prompt, max_tokens, priority, _, cancel = upcoming.pop(0)
            each = request([5] * prompt, max_tokens=max_tokens, priority=priority)
            everyone.append((each, cancel))
            scheduler.add(each)
        if upcoming:
            upcoming[0] = (*upcoming[0][:3], upcoming[0][3] - 1, upcoming[0][4])
        turns = [(turn + i) % num_groups for i in range(num_groups)]
        group_id = next((each for each in turns if scheduler.has_rows(each, num_groups)), turn)
        turn = (group_id + 1) % num_groups
        scheduled = scheduler.schedule(group_id, num_groups)
        assert sum(granted.count for granted in scheduled) <= tokens
        assert len(scheduler.running) <= seqs
        for granted in scheduled:
            assert granted.count >= 1
            assert granted.request.slot >= 0
            assert granted.request.slot % num_groups == group_id or not granted.samples
            assert len(granted.request.pages) * SIZE >= granted.start + granted.count
            scheduler.share_full_pages(granted.request)
        scheduler.check()
        unread.append((group_id, scheduled))
        if not scheduled:
            read(scheduler, unread.pop(0)[1])
        while [of for of, _ in unread].count(group_id) > late:
            read(scheduler, unread.pop(0)[1])
        for each, cancel in everyone:
            if cancel and each.num_output >= 3 and not each.finished:
                finish(scheduler, each)
        if not (scheduler.has_work or upcoming):
            break
    assert not scheduler.has_work
    for each, cancel in everyone:
        assert each.finished
        assert cancel or len(each.tokens) == each.max_len
    scheduler.check()
    assert scheduler.pool.usage == 0
