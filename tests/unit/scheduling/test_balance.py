"""A new replica gets its share of the requests that wait."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fjx.sampling_params import SamplingParams
from fjx.scheduling.balance import even_out
from fjx.scheduling.request import Request
from tests.unit.engine.plan_cases import MIXED, PLAIN_TARGETS, change, deep_engine, even, expected


def waiting(*arrivals: float, priority: int = 0) -> list[Request]:
    return [
        Request(
            id=str(arrival),
            prompt_len=1,
            tokens=[1],
            params=SamplingParams(),
            seed=0,
            max_len=9,
            arrival=arrival,
            priority=priority,
            order=order,
        )
        for order, arrival in enumerate(arrivals)
    ]


def names(loads: Sequence[int], queues: Sequence[Sequence[Request]]) -> list[tuple[str, int]]:
    return [(move.request.id, move.to) for move in even_out(loads, queues)]


def test_the_last_in_the_longest_queue_move_in_their_order() -> None:
    queue = waiting(1, 2, 3, 4, 5)
    assert names([9, 0], [queue, []]) == [("2", 1), ("3", 1), ("4", 1), ("5", 1)]
    two = names([9, 6, 0], [queue, waiting(8, 9), []])
    assert two == [(name, 2) for name in "23459"]


def test_who_is_served_last_moves_first_whoever_came_last() -> None:
    queue = [*waiting(7, priority=5), *waiting(8, 9)]
    assert names([3, 1], [queue, []]) == [("7", 1)]


def test_running_requests_stay() -> None:
    assert names([8, 0], [[], []]) == []
    assert names([8, 0], [waiting(1), []]) == [("1", 1)]


@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=5,
    )
)
def test_loads_are_even_where_enough_requests_wait(sizes: list[tuple[int, int]]) -> None:
    loads = [running + queued for running, queued in sizes]
    queues = [waiting(*range(queued)) for _, queued in sizes]
    moves = even_out(loads, queues)
    for request, to in moves:
        source = next(i for i, queue in enumerate(queues) if request in queue)
        assert source != to
        queues[source].remove(request)
        loads[source] -= 1
        loads[to] += 1
    assert sum(loads) == sum(map(sum, sizes))
    for load, queue in zip(loads, queues, strict=True):
        assert load - min(loads) < 2 or not queue


def test_a_change_of_plan_that_adds_a_replica_shares_the_queue() -> None:
    engine = deep_engine(even(1))
    asks = [*MIXED, *MIXED, *MIXED]
    added = [
        engine.add(str(i), list(ask.prompt), ask.params, arrival=1.0)[0]
        for i, ask in enumerate(asks)
    ]
    engine.regranularize(PLAIN_TARGETS["2 replicas"])
    engine.plans.wait(120)
    while engine.plans.active:
        before = [request for request in added if not request.finished]
        engine.step()
    loads = [replica.load for replica in engine.replicas]
    assert len(before) >= 6
    assert min(loads) >= sum(loads) // 2
    queues = [replica.scheduler.waiting for replica in engine.replicas]
    assert all(queues)
    started: list[Request] = []
    while engine.has_work:
        engine.step()
        started += [each for each in added if each.scheduled is not None and each not in started]
    for queue in queues:
        of_replica = [request for request in started if request in queue]
        assert of_replica == sorted(queue, key=added.index), "first come, first served"
    for request, ask in zip(added, asks, strict=True):
        assert request.tokens[request.prompt_len :] == expected(ask).tokens
    engine.check_idle()
    change(engine, even(1))
