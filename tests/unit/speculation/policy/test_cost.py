"""The cost model finds the cost of steps from noisy ones, and goes on sensibly beyond them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.speculation.policy.cost import CostModel

BUCKETS = (2, 4, 8, 16, 32, 64, 128, 256)
Truth = Callable[[int, float], float]

observations = st.lists(
    st.tuples(st.integers(1, 300), st.integers(0, 500_000), st.floats(1e-5, 10)), max_size=40
)


def straight(rows: int, context: float) -> float:
    return 0.01 + 1e-4 * rows + 1e-7 * context


def staircase(rows: int, context: float) -> float:
    return straight(next(size for size in BUCKETS if size >= rows), context)


def feed(
    model: CostModel,
    truth: Truth,
    steps: int = 600,
    max_rows: int = 256,
    noise: float = 0.05,
    outliers: float = 0.0,
) -> None:
    random = np.random.default_rng(0)
    for _ in range(steps):
        rows = int(np.exp(random.uniform(0, np.log(max_rows))))
        context = rows * random.uniform(100, 1000)
        seconds = truth(rows, context) * np.exp(random.normal(0, noise))
        if random.random() < outliers:
            seconds *= 50
        model.observe(rows, context, seconds)


def errors(model: CostModel, truth: Truth) -> list[float]:
    sizes = (2, 3, 8, 13, 50, 64, 100, 200, 256)
    return [abs(model.seconds(n, 400 * n) / truth(n, 400 * n) - 1) for n in sizes]


def test_a_straight_cost_is_found() -> None:
    model = CostModel(BUCKETS)
    feed(model, straight)
    assert max(errors(model, straight)) < 0.08


def test_a_staircase_is_found() -> None:
    model = CostModel(BUCKETS, padded=True)
    feed(model, staircase)
    assert max(errors(model, staircase)) < 0.08
    assert model.seconds(33, 0) == model.seconds(64, 0) < model.seconds(65, 0)


def test_context_has_its_own_price() -> None:
    model = CostModel(BUCKETS, padded=True)
    feed(model, staircase, noise=0.01)
    added = model.seconds(64, 100_000) - model.seconds(64, 0)
    assert added == pytest.approx(1e-7 * 100_000, rel=0.2)


def test_single_steps_that_hang_change_little() -> None:
    model = CostModel(BUCKETS, padded=True)
    feed(model, staircase, outliers=0.03)
    assert max(errors(model, staircase)) < 0.25


def test_a_slow_first_run_of_every_size_is_forgotten() -> None:
    model = CostModel(BUCKETS, padded=True)
    for size in BUCKETS:
        model.observe(size, 0, 3.0)
    feed(model, staircase, steps=300)
    assert max(errors(model, staircase)) < 0.1


def test_a_slow_first_run_that_stays_the_only_one_does_not_count() -> None:
    model = CostModel(BUCKETS, padded=True)
    model.observe(2, 0, 5.0)
    for _ in range(20):
        model.observe(64, 0, 0.02)
    assert model.seconds(64, 0) == pytest.approx(0.02, rel=0.05)
    assert model.seconds(2, 0) <= 0.02


def test_a_new_plan_with_another_cost_is_soon_learned() -> None:
    model = CostModel(BUCKETS, padded=True)
    feed(model, staircase)
    for _ in range(6):
        model.observe(64, 400 * 64, 3 * staircase(64, 400 * 64))
    assert model.seconds(64, 400 * 64) == pytest.approx(3 * staircase(64, 400 * 64), rel=0.1)


def test_between_observed_sizes_it_interpolates() -> None:
    model = CostModel(BUCKETS)
    for _ in range(10):
        model.observe(8, 0, 0.010)
        model.observe(128, 0, 0.034)
    assert model.seconds(68, 0) == pytest.approx(0.022, rel=0.05)
    assert model.seconds(256, 0) == pytest.approx(0.0596, rel=0.05)


def test_one_size_alone_is_taken_as_half_fixed() -> None:
    model = CostModel(BUCKETS)
    for _ in range(10):
        model.observe(32, 0, 0.02)
    assert model.seconds(64, 0) == pytest.approx(0.03, rel=0.05)
    assert model.seconds(16, 0) == pytest.approx(0.015, rel=0.05)


def test_before_any_step_the_cost_grows_with_the_rows() -> None:
    model = CostModel(BUCKETS, padded=True)
    assert not model.known
    assert 0 < model.seconds(2, 0) < model.seconds(100, 0)
    model.observe(2, 0, 0.01)
    assert model.known


def test_a_size_is_known_from_its_second_step_on() -> None:
    model = CostModel(BUCKETS, padded=True)
    model.observe(33, 0, 0.01)
    assert not model.knows(64)
    model.observe(60, 0, 0.01)
    assert model.knows(64)
    assert model.knows(40)
    assert not model.knows(65)


def test_slow_growth_of_the_context_is_not_mistaken_for_its_price() -> None:
    model, random = CostModel(BUCKETS, padded=True), np.random.default_rng(0)
    for step in range(400):
        hangs = 20 if random.random() < 0.01 else 1
        model.observe(128, 13_000 + 100 * step, 0.3 * np.exp(random.normal(0, 0.05)) * hangs)
    assert model.seconds(128, 50_000) == pytest.approx(0.3, rel=0.1)
    assert model.seconds(128, 0) > 0.2


def test_steps_of_one_context_blow_nothing_up() -> None:
    model = CostModel(BUCKETS, padded=True)
    for _ in range(3000):
        model.observe(8, 5000, 0.01)
    assert model.seconds(8, 5000) == pytest.approx(0.01, rel=0.01)
    assert model.seconds(8, 10_000) < 0.012


@given(observations, st.booleans(), st.integers(0, 100_000))
def test_more_rows_never_cost_less(
    steps: list[tuple[int, int, float]], padded: bool, context: int
) -> None:
    model = CostModel(BUCKETS, padded=padded)
    for rows, tokens, seconds in steps:
        model.observe(rows, tokens, seconds)
    read = model.row_seconds(300, context)
    assert np.all(np.isfinite(read))
    assert read[0] == 0
    assert np.all(read[1:] > 0)
    assert np.all(np.diff(read) >= -1e-12)
    assert model.seconds(77, context) == pytest.approx(read[77])
    assert model.seconds(77, context + 1000) >= model.seconds(77, context)


def test_each_number_of_rows_may_have_its_own_context() -> None:
    model = CostModel(BUCKETS)
    feed(model, straight)
    read = model.row_seconds(2, np.array([0.0, 1000.0, 2000.0]))
    assert read.tolist() == [0, model.seconds(1, 1000), model.seconds(2, 2000)]


def test_a_step_that_was_read_together_with_another_says_nothing() -> None:
    model = CostModel(BUCKETS)
    for _ in range(3):
        model.offer(8, 1000, 0.02)
        model.offer(8, 1000, 0.0)
    assert model.seconds(8, 1000) == pytest.approx(0.02, rel=0.1)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="increasing numbers of rows"):
        CostModel([4, 2])
    with pytest.raises(ValueError, match="increasing numbers of rows"):
        CostModel([])
    for rows, seconds in ((0, 1.0), (4, 0.0), (4, float("nan"))):
        with pytest.raises(ValueError, match="cannot take"):
            CostModel([4]).observe(rows, 0, seconds)
