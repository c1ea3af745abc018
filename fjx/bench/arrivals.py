"""When requests arrive."""

from __future__ import annotations

import math

import numpy as np


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Draw arrival times of a renewal process with Gamma-distributed intervals.

    The intervals have mean ``1 / rate`` and coefficient of variation ``1 / sqrt(burstiness)``. As
    in vLLM's benchmark they are then scaled so that the last request arrives at ``count / rate``
    exactly: runs with different seeds offer the same load.

    Args:
        count: Number of requests.
        rate: Mean arrivals per second; infinite: all at time 0.
        burstiness: Shape of the Gamma distribution; 1 is a Poisson process.
        seed: Fixes the draw.

    Returns:
        Seconds from the start, not decreasing.
    """
    if math.isinf(rate) or count == 0:
        return [0.0] * count
    intervals = np.random.default_rng(seed).gamma(burstiness, 1.0 / (rate * burstiness), count)
    times = np.cumsum(intervals)
    if times[-1] == 0.0:  # a tiny shape underflows to intervals of zero: one burst
        return [0.0] * count
    scaled: list[float] = (times * (count / rate / times[-1])).tolist()
    return scaled
