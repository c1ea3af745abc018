"""Several frontiers at once only while that pays."""

from __future__ import annotations

import random

from fjx.speculation.policy.frontiers import FrontierDepth


def run(
    chooser: FrontierDepth, rounds: int, *, right: float, drafting: float, slowdown: float = 1.0
) -> list[int]:
    """Depths over time on a machine where a step takes 1, and hides drafting while others run."""
    source, depths = random.Random(0), []
    for _ in range(rounds):
        depth = chooser.depth
        interval = 1 + drafting if depth == 1 else max(slowdown, drafting)
        chooser.observe_step(interval, 1 + drafting, drafting)
        whole = source.random() < right
        chooser.observe_frontier(3, 3 if whole else 1)
        depths.append(depth)
    return depths


def test_drafts_that_are_mostly_right_hide_the_drafting() -> None:
    depths = run(FrontierDepth(2), 400, right=0.97, drafting=0.5)
    assert depths[0] == 1
    assert depths.count(2) > 300


def test_drafts_that_are_often_wrong_are_waited_for() -> None:
    assert set(run(FrontierDepth(2), 400, right=0.5, drafting=0.3)) == {1}


def test_nothing_to_hide_is_no_reason() -> None:
    assert set(run(FrontierDepth(2), 400, right=0.97, drafting=0.01)) == {1}


def test_a_slowdown_that_eats_the_gain_is_noticed_and_tried_again_later() -> None:
    depths = run(FrontierDepth(2), 1500, right=0.98, drafting=0.4, slowdown=1.6)
    tries = [i for i in range(1, len(depths)) if depths[i - 1 : i + 1] == [1, 2]]
    assert 2 <= len(tries) <= 4
    assert depths.count(2) < 0.1 * len(depths)


def test_a_pipeline_takes_as_many_as_it_has_stages() -> None:
    chooser, source = FrontierDepth(4, stages=4), random.Random(1)
    for _ in range(400):
        chooser.observe_step(1.05 / chooser.depth, 1.05, 0.05)
        chooser.observe_frontier(3, 3 if source.random() < 0.95 else 0)
    assert chooser.depth == 4


def test_one_is_always_one() -> None:
    assert set(run(FrontierDepth(1), 100, right=1.0, drafting=2.0)) == {1}


def test_a_depth_that_pays_for_long_goes_on_when_others_are_forgotten() -> None:
    depths = run(FrontierDepth(3), 2000, right=0.98, drafting=0.5)
    assert depths[600:].count(1) < 0.1 * len(depths[600:])
