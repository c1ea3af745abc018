"""A trace of some steps."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from fjx.engine.tracing import StepTrace


def test_the_steps_that_are_asked_for_are_traced_and_no_more(tmp_path: Path) -> None:
    trace = StepTrace(tmp_path / "trace", skip=1, steps=2)
    written = []
    for _ in range(5):
        with trace.step():
            jnp.ones(3).sum().block_until_ready()
        written.append(len(list(tmp_path.rglob("*.xplane.pb"))))
    assert written == [0, 0, 1, 1, 1]
