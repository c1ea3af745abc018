"""Custom calls of XLA on a CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import jax
import pytest

from fjx.kernels import xla_ffi


def does_nothing(frame: int) -> int:
    return 0


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="custom calls of a CPU")
def test_two_threads_register_a_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are traced in the background and, if need be, on the request path."""
    registered: list[str] = []
    start = Barrier(2)

    def note(name: str, *_: Any, **__: Any) -> None:
        registered.append(name)

    def register() -> None:
        start.wait()
        xla_ffi.register("fjx_nothing", does_nothing)
        assert registered == ["fjx_nothing"]

    monkeypatch.setattr(jax.ffi, "register_ffi_target", note)
    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(register) for _ in range(2)]:
            each.result()
