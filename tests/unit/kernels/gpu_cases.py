"""What tests of GPU kernels share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from fjx.kernels import mosaic

interpreted = pytest.mark.skipif(
    not mosaic.can_interpret(), reason="the interpreter of GPU kernels needs JAX 0.12"
)


def one_is_quick(models: Iterable[str]) -> list[Any]:
    """Models to be a parameter of tests that compile for each of them: all but the smallest are
    slow."""
    slow = pytest.mark.slow
    return [name if name == "SmolLM2 135M" else pytest.param(name, marks=slow) for name in models]
