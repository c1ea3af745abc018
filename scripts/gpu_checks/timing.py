"""How calls are timed, and what the GPU itself reaches, which other figures are set beside."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

_COMPILERS = 8


def lowered() -> Iterator[tuple[str, Callable[[], object]]]:
    """Nothing here is compiled by fjx."""
    yield from ()


def checks() -> dict[str, Callable[[], Any]]:
    """The GPU, and the limits that it reaches."""
    return {"device": device, "copy": copy_bandwidth, "product": product_rate}


def seconds_of(run: Callable[..., Any], given: tuple[Any, ...], repeats: int = 20) -> float:
    """Seconds of a call on the GPU: the median of five times so many calls in a row.

    Only the last call of a row is waited for, so that the host sends calls while the GPU works on
    earlier ones. A call that takes the GPU less time than the host needs to send it, some tens of
    microseconds, is measured as the host's time.
    """
    jax.block_until_ready(run(*given))
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(repeats):
            out = run(*given)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - begun) / repeats)
    return statistics.median(times)


def compiled(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Functions compiled for arguments of these shapes, side by side: compiling takes longer than
    what it is for."""
    lowered = [jax.jit(run).lower(*given) for run, given in calls]
    with ThreadPoolExecutor(_COMPILERS) as pool:
        return list(pool.map(lambda each: each.compile(), lowered))


def device() -> dict[str, Any]:
    """What is measured, and what a call costs that does nothing."""
    found = jax.devices()[0]
    empty = seconds_of(jax.jit(lambda x: x + 1), (jnp.zeros(8),), repeats=200)
    return {
        "kind": found.device_kind,
        "compute_capability": getattr(found, "compute_capability", None),
        "memory_bytes": (found.memory_stats() or {}).get("bytes_limit"),
        "smallest_call_microseconds": 1e6 * empty,
    }


def copy_bandwidth() -> dict[str, float]:
    """Bytes a second of reading and writing two gigabytes."""
    x = jnp.zeros(2**30, jnp.bfloat16)
    seconds = seconds_of(jax.jit(lambda x: x + 1), (x,))
    return {"terabytes_per_second": 2 * x.nbytes / seconds / 1e12}


def product_rate() -> dict[str, float]:
    """Operations a second of a large product in bfloat16."""
    n = 8192
    a = jnp.ones((n, n), jnp.bfloat16)
    seconds = seconds_of(jax.jit(lambda a: a @ a), (a,))
    return {"teraflops": 2 * n**3 / seconds / 1e12}
