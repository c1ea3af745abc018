"""Compiles the inner loop once."""

from __future__ import annotations

import pytest

from fjx.sim.timing import warm_up


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    warm_up()
