"""What tests of GPU kernels share."""

from __future__ import annotations

import pytest

from fjx.kernels import mosaic

interpreted = pytest.mark.skipif(
    not mosaic.can_interpret(), reason="the interpreter of GPU kernels needs JAX 0.12"
)
