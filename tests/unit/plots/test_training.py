"""The picture of a training."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.plots.training import training_svg
from tests.unit.plots.picture_cases import check_readable, texts_of


def log(
    steps: int, positions: int, every: int = 4, scale: float = 1.0, measured: int = 3
) -> list[dict[str, Any]]:
    """Of a training that unrolls every so many steps, as `fjx.distill.train` writes it."""
    lines: list[dict[str, Any]] = [
        {
            "kind": "step",
            "step": number,
            "cross_entropy": [
                scale * (1 + i + 4 / number) for i in range(positions if number % every == 0 else 1)
            ],
        }
        for number in range(1, steps + 1)
    ]
    for number in range(1, measured + 1):
        shares = [0.1 * number + 0.01 * i for i in range(positions)]
        at = steps * number // measured
        lines.append({"kind": "acceptance", "step": at, "greedy": {"by_position": shares}})
    return lines


def test_it_says_what_is_drawn_in_which_unit() -> None:
    picture = training_svg("Draft head for a model", log(1924, 4))
    check_readable(picture)
    texts = texts_of(picture)
    assert "Loss: cross-entropy against the target, nats, means over 32 steps" in texts
    assert texts.count("training steps") == 2
    assert "draft position 4" in texts


@pytest.mark.parametrize("lines", [[], log(1, 1, measured=0), log(3, 2, every=9, measured=1)])
def test_a_training_that_has_just_begun_can_be_drawn(lines: list[dict[str, Any]]) -> None:
    check_readable(training_svg("title", lines))


def test_what_is_not_measured_yet_is_said() -> None:
    assert "nothing was measured yet" in texts_of(training_svg("title", log(9, 1, measured=0)))


@given(st.integers(1, 3000), st.integers(1, 20), st.integers(1, 5), st.floats(1e-6, 1e6), st.text())
@settings(deadline=None, max_examples=25)
def test_any_training_can_be_read(
    steps: int, positions: int, every: int, scale: float, title: str
) -> None:
    check_readable(training_svg(title, log(steps, positions, every, scale)))
