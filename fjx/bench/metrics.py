"""What a request's times say: the serving metrics, with the definitions of vLLM's benchmark.

- TTFT, time to first token: from sending the request to its first token.
- E2EL, end-to-end latency: from sending the request to its last token.
- TPOT, time per output token: (E2EL - TTFT) / (output tokens - 1); requests of one token have none.
- ITL, inter-token latency: the time between two chunks of the stream, pooled over all requests. A
  chunk may hold several tokens.
- Goodput: requests per second that keep every given limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fjx.errors import UserError

GOODPUT_METRICS = ("ttft", "tpot", "e2el")


@dataclass(kw_only=True)
class RequestRecord:
    """What one request experienced. Times are in seconds; ``start`` is since the first arrival."""

    scheduled: float
    """When it should have arrived."""
    start: float = 0.0
    """When it was sent; later than ``scheduled`` where the concurrency limit held it back."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft: float | None = None
    e2el: float | None = None
    itl: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None below two tokens."""
        if self.ttft is None or self.e2el is None or self.output_tokens < 2:
            return None
        return (self.e2el - self.ttft) / (self.output_tokens - 1)


def parse_goodput(limits: Iterable[str]) -> dict[str, float]:
    """Parse ``METRIC:MILLISECONDS`` into metric to limit in seconds.

    Raises:
        UserError: an entry has another form or metric; the message names it.
    """
    parsed: dict[str, float] = {}
    for entry in limits:
        metric, _, limit = entry.partition(":")
        try:
            milliseconds = float(limit)
        except ValueError:
            milliseconds = -1.0
        if metric not in GOODPUT_METRICS or milliseconds < 0:
            raise UserError(
                f"goodput: expected METRIC:MILLISECONDS with a metric of "
                f"{', '.join(GOODPUT_METRICS)}, got {entry!r}"
            )
        parsed[metric] = milliseconds / 1000
    return parsed


def is_good(record: RequestRecord, limits: Mapping[str, float]) -> bool:
    """Whether a completed request kept all limits; a request of one token has a TPOT of 0."""
    return all((getattr(record, metric) or 0.0) <= limit for metric, limit in limits.items())


def peak_concurrency(records: Iterable[RequestRecord]) -> int:
    """Most completed requests in flight at one moment."""
    events = [
        event
        for record in records
        if record.e2el is not None
        for event in ((record.start, 1), (record.start + record.e2el, -1))
    ]
    in_flight = peak = 0
    for _, change in sorted(events):  # at equal times a departure (-1) comes before an arrival
        in_flight += change
        peak = max(peak, in_flight)
    return peak


def distribution(
    name: str, seconds: Sequence[float], percentiles: Sequence[float]
) -> dict[str, float | None]:
    """Summarise times under the keys of vLLM's result files (``mean_ttft_ms``, ``p99_ttft_ms``).

    Standard deviation is that of the population; percentiles interpolate linearly. Without a
    value, every entry is None.

    Returns:
        Statistic to milliseconds.
    """
    values = np.asarray(seconds, dtype=np.float64) * 1000
    statistics: dict[str, float | None] = dict.fromkeys(
        [f"{statistic}_{name}_ms" for statistic in ("mean", "median", "std")]
        + [f"p{percentile:g}_{name}_ms" for percentile in percentiles]
    )
    if values.size == 0:
        return statistics
    statistics[f"mean_{name}_ms"] = float(values.mean())
    statistics[f"median_{name}_ms"] = float(np.median(values))
    statistics[f"std_{name}_ms"] = float(values.std())
    for percentile in percentiles:
        statistics[f"p{percentile:g}_{name}_ms"] = float(np.percentile(values, percentile))
    return statistics


def summarize(
    records: Sequence[RequestRecord],
    duration: float,
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
) -> dict[str, Any]:
    """Reduce the records of a run to its metrics. Only completed requests count.

    Args:
        records: All requests of the run.
        duration: Seconds from the first arrival to the last response.
        percentiles: Which ones to report, 0 to 100.
        goodput: Metric to limit in seconds; empty: none is reported.

    Returns:
        Metrics under the names of vLLM's result files; throughputs are per second.
    """
    completed = [record for record in records if record.error is None]
    failed = [record for record in records if record.error is not None]
    prompt_tokens = sum(record.prompt_tokens for record in completed)
    output_tokens = sum(record.output_tokens for record in completed)
    result: dict[str, Any] = {
        "duration": duration,
        "completed": len(completed),
        "failed": len(failed),
        "first_error": failed[0].error if failed else None,
        "total_input_tokens": prompt_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(completed) / duration,
        "output_throughput": output_tokens / duration,
        "total_token_throughput": (prompt_tokens + output_tokens) / duration,
        "max_concurrent_requests": peak_concurrency(completed),
    }
    if goodput:
        good = sum(is_good(record, goodput) for record in completed)
        result["request_goodput"] = good / duration
        result["goodput_limits_ms"] = {m: limit * 1000 for m, limit in goodput.items()}
    for name in ("ttft", "tpot", "e2el"):
        times = [t for record in completed if (t := getattr(record, name)) is not None]
        result |= distribution(name, times, percentiles)
    intervals = [interval for record in completed for interval in record.itl]
    return result | distribution("itl", intervals, percentiles)
