"""Who runs next: the scheduling law without any model."""

from __future__ import annotations

from itertools import count as counter

from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.cache.page_pool import PagePool
from fjx.engine.request import Request
from fjx.engine.scheduler import ScheduledRows, Scheduler
from fjx.sampling_params import SamplingParams

SIZE = 4
arrivals = counter()


def make(
    pages: int = 64,
    seqs: int = 4,
    tokens: int = 16,
    share_prefixes: bool = False,
    drafts: int = 0,
) -> Scheduler:
    return Scheduler(PagePool(pages + 1, SIZE, share_prefixes), seqs, tokens, drafts)


def request(
    prompt: int | list[int], *, name: str = "", max_tokens: int = 8, priority: int = 0
) -> Request:
    arrival = next(arrivals)
    tokens = [1000 * arrival + i for i in range(prompt)] if isinstance(prompt, int) else prompt
    return Request(
        id=name or str(arrival),
        prompt_len=len(tokens),
        tokens=list(tokens),
        params=SamplingParams(),
        seed=0,
        max_len=len(tokens) + max_tokens,
        arrival=float(arrival),
        priority=priority,
    )


def add(scheduler: Scheduler, *requests: Request) -> None:
    for each in requests:
        scheduler.add(each)


def step(scheduler: Scheduler) -> dict[str, int]:
    """One synchronous step; returns how many rows each request got."""
    scheduled = scheduler.schedule()
    rows = {granted.request.id: granted.count for granted in scheduled}
    for granted in scheduled:
        scheduler.share_full_pages(granted.request)
    read(scheduler, scheduled)
    return rows


def read(scheduler: Scheduler, scheduled: list[ScheduledRows]) -> None:
    """The host reads the tokens of a step, and finishes what has reached its length."""
    for granted in scheduled:
        each = granted.request
        if not granted.samples:
            continue
        each.unread -= 1
        if each.finished:
            continue
        each.tokens.append(len(each.tokens))
        if len(each.tokens) >= each.max_len:
            finish(scheduler, each)


def finish(scheduler: Scheduler, each: Request) -> None:
    each.finish_reason = "length"
    scheduler.finish(each)


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


def test_the_youngest_is_preempted_and_computes_everything_again() -> None:
    scheduler = make(pages=5)
    old, young = request(8, name="old", max_tokens=12), request(8, name="young", max_tokens=12)
    add(scheduler, old, young)
    assert step(scheduler) == {"old": 8, "young": 8}
    assert step(scheduler) == {"old": 1}, "old takes the last page, young gives up its own"
    assert scheduler.num_preemptions == 1
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


def test_pages_are_reserved_only_while_others_have_enough() -> None:
    scheduler = make(pages=8, seqs=2, tokens=4, drafts=4)
    each = request(4)
    add(scheduler, each)
    step(scheduler)
    held = len(each.pages)
    assert scheduler.reserve(each, 40) < 40
    assert scheduler.pool.num_available >= 1 + 4 // SIZE + 1
    assert len(each.pages) > held


def parts_of(scheduler: Scheduler, parts: int) -> list[int]:
    """How many requests run in each part."""
    return [len(scheduler.running_in(part, parts)) for part in range(parts)]


def test_parts_stay_even_while_requests_come() -> None:
    scheduler = make(seqs=16, tokens=64)
    add(scheduler, *(request(4) for _ in range(6)))
    sizes = []
    for part in range(4):
        scheduler.schedule(part, 4)
        sizes.append(parts_of(scheduler, 4))
    assert sizes == [[2, 0, 0, 0], [2, 2, 0, 0], [2, 2, 2, 0], [2, 2, 2, 0]]
    assert [scheduler.has_rows(part, 4) for part in range(4)] == [True, True, True, False]
    add(scheduler, request(4), request(4))
    assert [scheduler.has_rows(part, 4) for part in range(4)] == [True] * 4
    for part in (0, 1, 2, 3):
        scheduler.schedule(part, 4)
    assert parts_of(scheduler, 4) == [2, 2, 2, 2]


def test_a_new_request_runs_in_the_next_step_whosever_turn_it_is() -> None:
    for turn in range(3):
        scheduler = make(seqs=9, tokens=64)
        add(scheduler, *(request(4) for _ in range(6)))
        for part in range(3):
            scheduler.schedule(part, 3)
        new = request(4)
        add(scheduler, new)
        assert new in [granted.request for granted in scheduler.schedule(turn, 3)]


def test_a_part_gets_no_request_beyond_its_share_or_its_slots() -> None:
    scheduler = make(seqs=2, tokens=64)
    add(scheduler, request(4), request(4), request(4))
    assert len(scheduler.schedule(0, 4)) == 1
    assert scheduler.schedule(0, 4)[0].start == 4, "the second request waits for another part"
    assert scheduler.schedule(2, 4) == [], "no slot is in this part"
    assert len(scheduler.schedule(1, 4)) == 1
    assert (parts_of(scheduler, 4), scheduler.num_waiting) == ([1, 1, 0, 0], 1)


def test_each_part_has_the_whole_budget() -> None:
    scheduler = make(seqs=4, tokens=8)
    add(scheduler, request(20), request(20))
    for part in (0, 1):
        assert [granted.count for granted in scheduler.schedule(part, 2)] == [8]


def test_drafts_have_their_whole_budget_in_each_part() -> None:
    scheduler = make(tokens=16, drafts=3)
    add(scheduler, request(2), request(2))
    in_flight = [rows for part in (0, 1) for rows in scheduler.schedule(part, 2)]
    read(scheduler, in_flight)
    for each in scheduler.running:
        scheduler.reserve(each, 3)
        each.extend_draft([1, 2, 3], [0.5] * 3)
    assert [scheduler.schedule(part, 2)[0].samples for part in (0, 1)] == [4, 4]


def with_a_long_prompt(prompt: int, pages: int = 64) -> tuple[Scheduler, Request, Request]:
    """A request of part 0 that decodes, and one of part 1 whose prompt is begun, 8 rows a step."""
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
    assert (last.start, last.count, last.samples) == (29, 1, 1), "it chooses in its own part"
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
    assert scheduler.running == [short], "the youngest gives way, though another part began it"
    scheduler.check()


def test_a_part_alone_carries_nothing() -> None:
    scheduler, short, long = with_a_long_prompt(30)
    finish(scheduler, short)
    assert not scheduler.has_rows(0, 2)
    assert scheduler.schedule(0, 2) == []
    assert [rows.request for rows in scheduler.schedule(1, 2)] == [long]


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
    assert not any(scheduler.has_rows(part, 2) for part in (0, 1))
    read(scheduler, [of_young])
    (granted,) = scheduler.schedule(0, 2)
    assert (granted.request, granted.count) == (young, 9), "it goes on in another part"
    scheduler.check()


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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    pages=st.integers(10, 24),
    seqs=st.integers(1, 5),
    tokens=st.integers(5, 20),
    share_prefixes=st.booleans(),
    late=st.integers(0, 1),
    parts=st.integers(1, 4),
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
    parts: int,
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
        turns = [(turn + i) % parts for i in range(parts)]
        part = next((each for each in turns if scheduler.has_rows(each, parts)), turn)
        turn = (part + 1) % parts
        scheduled = scheduler.schedule(part, parts)
        assert sum(granted.count for granted in scheduled) <= tokens
        assert len(scheduler.running) <= seqs
        for granted in scheduled:
            assert granted.count >= 1
            assert granted.request.slot >= 0
            assert granted.request.slot % parts == part or not granted.samples
            assert len(granted.request.pages) * SIZE >= granted.start + granted.count
            scheduler.share_full_pages(granted.request)
        scheduler.check()
        unread.append((part, scheduled))
        if not scheduled:
            read(scheduler, unread.pop(0)[1])
        while [of for of, _ in unread].count(part) > late:
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
