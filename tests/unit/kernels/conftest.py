"""What tests of several GPU kernels ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter's products, too, a row has the same bits wherever it stands, whichever of
    the two it is in: float64 sums products of bfloat16 so nearly exactly that no order shows."""
    matmul = np.matmul

    def product(a: Any, b: Any, dtype: Any) -> Any:
        return matmul(a, b, dtype=np.float64).astype(dtype)

    monkeypatch.setattr(np, "matmul", product)
