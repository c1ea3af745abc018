"""What came of a run, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STALLED, RECOVERED = 1.5, 1.2
"""FlexPipe: a request stalls whose latency is more than 1.5 times the first quartile; the stall is
over at one below 1.2 times it (arXiv:2510.11938, section 9)."""
_SMOOTHED = 25
"""Requests whose median tells how the service is, where one slow request is no burst."""


@dataclass(frozen=True)
class Outcomes:
    """Of each request, in the order of arrival: seconds from the start of the run."""

    arrival: Floats
    first: Floats
    """First token; not a number: it was refused."""
    end: Floats
    output: NDArray[np.int64]
    """Tokens."""
    alone: Floats
    """Seconds that it would take with nobody else there."""


@dataclass(frozen=True, kw_only=True)
class SimMetrics:
    """Seconds, requests and devices of a run."""

    requests: int
    refused: int
    latency_mean: float
    latency_p50: float
    latency_p95: float
    latency_p99: float
    ttft_mean: float
    ttft_p95: float
    tpot_mean: float
    """Seconds for each output token after the first."""
    goodput: float
    """Requests a second that met the objective."""
    attainment: float
    """Share of the requests that met it."""
    device_seconds: float
    """Devices held, over time."""
    devices_mean: float
    devices_most: float
    devices_least: float
    good_per_device_second: float
    """Requests that met the objective, for each second of a device that was held."""
    stalls: int
    recovery_p50: float
    """Seconds from the first request of a stall to the first one after it; 0: there was none."""
    recovery_p95: float
    burst_recovery_mean: float
    """Likewise, of the running median of 25 requests: one slow request among fast ones is no stall,
    and one fast request among slow ones does not end it."""
    burst_recovery_most: float
    changes: int
    """Of plan, or replicas started."""
    seconds: float
    """From the first arrival to the last token."""

    def to_json(self) -> dict[str, Any]:
        """As values for `json.dumps`."""
        return {name: round(value, 6) for name, value in vars(self).items()}


def measure(
    outcomes: Outcomes,
    *,
    objective: float,
    device_seconds: float,
    devices: tuple[float, float],
    changes: int,
) -> SimMetrics:
    """Sum up a run.

    Args:
        outcomes: Of its requests.
        objective: A request is served well if it takes at most this many times its time alone.
        device_seconds: Devices held, over time.
        devices: Fewest and most held at once.
        changes: See `SimMetrics`.
    """
    served = ~np.isnan(outcomes.end)
    arrival, first, end = (
        each[served] for each in (outcomes.arrival, outcomes.first, outcomes.end)
    )
    latency, ttft, alone = end - arrival, first - arrival, outcomes.alone[served]
    output = outcomes.output[served]
    several = output > 1
    tpot = (end - first)[several] / (output[several] - 1)
    good = int((latency <= objective * alone).sum())
    seconds = float(end.max() - outcomes.arrival[0])
    recoveries = stall_seconds(arrival, latency / alone)
    bursts = _burst_seconds(arrival, latency / alone)
    least, most = devices
    return SimMetrics(
        requests=len(served),
        refused=int((~served).sum()),
        latency_mean=float(latency.mean()),
        **{f"latency_p{p}": float(np.percentile(latency, p)) for p in (50, 95, 99)},
        ttft_mean=float(ttft.mean()),
        ttft_p95=float(np.percentile(ttft, 95)),
        tpot_mean=float(tpot.mean()) if several.any() else 0.0,
        goodput=good / seconds,
        attainment=good / len(served),
        device_seconds=device_seconds,
        devices_mean=device_seconds / seconds,
        devices_least=least,
        devices_most=most,
        good_per_device_second=good / device_seconds,
        stalls=len(recoveries),
        recovery_p50=float(np.percentile(recoveries, 50)) if len(recoveries) else 0.0,
        recovery_p95=float(np.percentile(recoveries, 95)) if len(recoveries) else 0.0,
        burst_recovery_mean=float(bursts.mean()) if len(bursts) else 0.0,
        burst_recovery_most=float(bursts.max(initial=0.0)),
        changes=changes,
        seconds=seconds,
    )


def _burst_seconds(arrival: Floats, slowness: Floats) -> Floats:
    """How long each stall of the running median lasted."""
    if len(arrival) < _SMOOTHED:
        return np.empty(0)
    medians: Floats = np.median(sliding_window_view(slowness, _SMOOTHED), axis=1)
    return stall_seconds(arrival[_SMOOTHED - 1 :], medians)


def stall_seconds(arrival: Floats, slowness: Floats) -> Floats:
    """How long each stall lasted.

    Args:
        arrival: Of each request, seconds, not decreasing.
        slowness: Its latency over its time alone, so that long requests do not count as slow.
    """
    usual = np.percentile(slowness, 25)
    stalls, begin = [], None
    for at, value in zip(arrival.tolist(), slowness.tolist(), strict=True):
        if begin is None and value > STALLED * usual:
            begin = at
        elif begin is not None and value <= RECOVERED * usual:
            stalls.append(at - begin)
            begin = None
    return np.array(stalls)
