"""How long a full queue takes, and who gives way in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.sampling_params import SamplingParams
from fjx.scheduling.queue_room import ServiceTimes, seconds_until_begun, who_gives_way
from fjx.scheduling.request import Request


def request(
    id: str, priority: int = 0, arrival: float = 0.0, index: int = 0, n: int = 1
) -> Request:
    return Request(
        id=id,
        prompt_len=1,
        tokens=[1],
        params=SamplingParams(n=n),
        seed=0,
        max_len=10,
        arrival=arrival,
        index=index,
        priority=priority,
    )


def test_wait_is_what_the_queue_takes() -> None:
    # 30 wait, 8 run at once, each takes 13 s: the last of them begins after about 49 s.
    assert seconds_until_begun(30, 8, [13.0] * 20, []) == pytest.approx(30 * 13 / 8)
    assert seconds_until_begun(30, 64, [0.1] * 64, []) == 1.0
    assert seconds_until_begun(1024, 1, [500.0], []) == 600.0


def test_requests_that_still_run_count_before_any_has_ended() -> None:
    assert seconds_until_begun(8, 8, [], []) == 5.0
    assert seconds_until_begun(8, 8, [], [1.0] * 8) == 5.0
    assert seconds_until_begun(8, 8, [], [60.0] * 8) == 60.0


def test_long_requests_that_still_run_lengthen_the_wait() -> None:
    short = seconds_until_begun(8, 8, [2.0] * 10, [])
    assert seconds_until_begun(8, 8, [2.0] * 10, [40.0] * 8) > 10 * short


@given(
    st.integers(0, 2000),
    st.integers(1, 200),
    st.lists(st.floats(0, 1e5), max_size=10),
    st.lists(st.floats(0, 1e5), max_size=10),
)
def test_wait_is_always_between_a_second_and_ten_minutes(waiting, at_once, ended, running) -> None:
    assert 1.0 <= seconds_until_begun(waiting, at_once, ended, running) <= 600.0
    assert seconds_until_begun(waiting, at_once, ended, running) <= seconds_until_begun(
        waiting + 1, at_once, ended, running
    )


def test_only_requests_that_ran_are_measured() -> None:
    times, never_ran, ran = ServiceTimes(), request("never ran"), request("ran")
    never_ran.ended = 50.0
    times.ended(never_ran)
    assert times.retry_after(10, [], 1, now=60.0) == 50.0  # nothing is known yet: 5 s each
    ran.scheduled, ran.ended = 10.0, 30.0
    times.ended(ran)
    assert times.retry_after(10, [], 1, now=60.0) == 200.0


def test_the_least_urgent_give_way_first_and_of_those_the_youngest() -> None:
    queue = [request("old", 5, 1.0), request("young", 5, 2.0), request("middle", 3, 3.0)]
    assert who_gives_way(queue, 0, 1) == ["young"]
    assert who_gives_way(queue, 0, 2) == ["young", "old"]
    assert who_gives_way(queue, 4, 2) == ["young", "old"]
    assert who_gives_way(queue, 4, 3) is None
    assert who_gives_way(queue, 5, 1) is None


def test_whoever_has_begun_does_not_give_way() -> None:
    preempted, other = request("preempted", 9), request("other", 8)
    preempted.scheduled = 1.0
    assert who_gives_way([preempted, other], 0, 1) == ["other"]
    assert who_gives_way([preempted], 0, 1) is None


def test_completions_of_one_prompt_go_together_or_not_at_all() -> None:
    whole = [request("whole", 5, index=i, n=3) for i in range(3)]
    assert who_gives_way(whole, 0, 1) == ["whole"]
    assert who_gives_way(whole[:2], 0, 1) is None  # the third one runs
