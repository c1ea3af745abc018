"""Speculation rests where it is measured to lose against plain decoding."""

from __future__ import annotations

import random

import pytest

from fjx.speculation.policy.throttle import (
    BASELINE_STEPS,
    DraftMode,
    MeasuredRound,
    SpeculationThrottle,
)

BUCKETS = (2, 4, 8, 16, 32)
PLAIN = 0.03


def round_of(
    requests: int, seconds: float, tokens: int, *, rows: int | None = None, steps: int = 1
) -> MeasuredRound:
    """A round in whose time no other one came, or some that brought nothing else."""
    rows = requests if rows is None else rows
    return MeasuredRound(steps, rows, requests, 2000, seconds, tokens, requests)


def serve(
    throttle: SpeculationThrottle, steps: int, gain: float, requests: int = 16, noise: float = 0.3
) -> list[DraftMode]:
    """Rounds bring ``gain`` more of their time than plain steps, more or less."""
    source, modes = random.Random(0), []
    for _ in range(steps):
        mode = throttle.next_mode(requests)
        modes.append(mode)
        if mode is DraftMode.COOLDOWN:
            throttle.observe_plain(requests, 2000, PLAIN)
        elif mode is DraftMode.DRAFT:
            tokens = 1.5 * requests * (1 + gain + source.uniform(-noise, noise))
            throttle.observe_round(requests, round_of(requests, 1.5 * PLAIN, round(tokens)))
    return modes


def test_what_gains_goes_on_but_for_glances() -> None:
    throttle = SpeculationThrottle(BUCKETS, catching_up=17)
    modes = serve(throttle, 1200, gain=0.2)
    assert modes.count(DraftMode.COOLDOWN) == 3 * BASELINE_STEPS
    assert modes.count(DraftMode.READ) == 0
    assert throttle.saved_seconds > 0


def test_what_loses_rests_longer_and_longer_and_is_read_before_the_next_try() -> None:
    modes = serve(SpeculationThrottle(BUCKETS, catching_up=17, longest=256), 3000, gain=-0.2)
    assert modes.count(DraftMode.DRAFT) < 200
    resumed = [
        i for i in range(1, 3000) if modes[i - 1] is DraftMode.READ and modes[i] is DraftMode.DRAFT
    ]
    assert 5 < len(resumed) < 20
    assert all(set(modes[i - 17 : i]) == {DraftMode.READ} for i in resumed)


def test_a_loss_of_a_few_percent_is_noticed() -> None:
    modes = serve(SpeculationThrottle(BUCKETS, catching_up=17, longest=256), 3000, gain=-0.04)
    assert modes.count(DraftMode.DRAFT) < 800


def test_a_small_gain_is_seldom_given_up() -> None:
    modes = serve(SpeculationThrottle(BUCKETS, catching_up=17, longest=256), 3000, gain=0.04)
    assert modes.count(DraftMode.DRAFT) > 2500


def test_what_lost_and_now_gains_goes_on() -> None:
    throttle = SpeculationThrottle(BUCKETS, catching_up=17, longest=256)
    serve(throttle, 1000, gain=-0.2)
    serve(throttle, 1000, gain=0.2)
    assert serve(throttle, 500, gain=0.2).count(DraftMode.DRAFT) > 450


def test_other_numbers_of_requests_are_judged_by_themselves() -> None:
    throttle = SpeculationThrottle(BUCKETS)
    serve(throttle, 300, gain=-0.3)
    assert throttle.next_mode(2) is DraftMode.DRAFT


def test_nothing_is_judged_before_plain_decoding_was_seen() -> None:
    throttle, modes = SpeculationThrottle(BUCKETS), []
    for _ in range(60):
        modes.append(throttle.next_mode(16))
        # Far too slow, but than what?
        throttle.observe_round(16, round_of(16, 10.0, 16))
    assert modes.count(DraftMode.COOLDOWN) == BASELINE_STEPS
    assert throttle.saved_seconds == 0


def test_rounds_that_are_read_at_once_with_another_are_counted() -> None:
    throttle = SpeculationThrottle(BUCKETS)
    for _ in range(BASELINE_STEPS):
        throttle.observe_plain(16, 2000, PLAIN)
    for turn in range(300):
        # Where the host comes late, a round seems to take no time, and the next one twice its own.
        throttle.next_mode(16)
        throttle.observe_round(16, round_of(16, 3 * PLAIN * (turn % 2), 24))
    assert throttle.saved_seconds == pytest.approx(0, abs=1e-6)
    assert throttle.next_mode(16) is DraftMode.DRAFT, "they take as long as what they bring"


def test_a_round_that_the_machine_holds_up_is_no_reason_to_rest() -> None:
    throttle = SpeculationThrottle(BUCKETS)
    serve(throttle, 300, gain=0.05)
    throttle.observe_round(16, round_of(16, 1000 * PLAIN, 24))
    assert serve(throttle, 100, gain=0.05).count(DraftMode.DRAFT) == 100


def test_prompts_in_a_round_would_have_been_in_one_plain_step() -> None:
    throttle = SpeculationThrottle(BUCKETS)
    for _ in range(BASELINE_STEPS):
        throttle.observe_plain(4, 2000, PLAIN)
        throttle.observe_plain(32, 2000, 4 * PLAIN)
    for _ in range(40):  # three tokens for each of 4 requests, in the time of three plain steps
        throttle.observe_round(4, round_of(4, (4 + 1 + 1) * PLAIN, 12, rows=32))
    assert throttle.saved_seconds == pytest.approx(0, abs=0.05 * PLAIN * 40)
    for _ in range(40):
        throttle.observe_round(4, round_of(4, 8 * PLAIN, 12, rows=32))
    assert throttle.next_mode(4) is DraftMode.COOLDOWN


def test_parts_that_are_under_way_at_once_save_time_together() -> None:
    alone, together = SpeculationThrottle(BUCKETS), SpeculationThrottle(BUCKETS)
    for throttle, steps in ((alone, 1), (together, 4)):
        for _ in range(BASELINE_STEPS):
            throttle.observe_plain(16, 2000, PLAIN)
        for _ in range(40):
            throttle.observe_round(16, round_of(16, PLAIN, 32, steps=steps))
    assert alone.saved_seconds == pytest.approx(4 * together.saved_seconds)


def test_glances_and_rests_are_as_long_for_each_part() -> None:
    throttle = SpeculationThrottle(BUCKETS, catching_up=3)
    throttle.num_groups = 4
    modes = serve(throttle, 2000, gain=-0.3)
    first = modes.index(DraftMode.COOLDOWN)
    assert modes[first : first + 4 * BASELINE_STEPS + 1] == [DraftMode.COOLDOWN] * (
        4 * BASELINE_STEPS
    ) + [DraftMode.DRAFT]
    caught_up = modes.index(DraftMode.READ)
    assert modes[caught_up : caught_up + 4 * 3] == [DraftMode.READ] * (4 * 3)
