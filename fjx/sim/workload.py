"""What is asked of the cluster: requests and when they come, from traces or drawn."""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from fjx.bench.arrivals import arrival_times
from fjx.bench.traces import TraceEntry, read_trace
from fjx.errors import UserError
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request

_PARAMS = SamplingParams()
_UNKNOWN = -1
"""A prompt's token: what it is does not matter."""
_LEAST_GAP = 1e-9
_SERVEGEN_WINDOW = 600.0
"""Seconds of a row of a ServeGen client."""


@dataclass(frozen=True)
class SimRequest:
    """One request."""

    arrival: float
    """Seconds from the start."""
    prompt: int
    """Tokens."""
    output: int
    """Tokens."""

    def to_engine(self, number: int, now: float) -> Request:
        """The engine's request, which has come now; its number is its ``index``."""
        return Request(
            id=str(number),
            prompt_len=self.prompt,
            tokens=[_UNKNOWN] * self.prompt,
            params=_PARAMS,
            seed=0,
            max_len=self.prompt + self.output,
            arrival=now,
            index=number,
        )


Workload = Sequence[SimRequest]


def gamma_arrivals(count: int, rate: float, cv: float, seed: int) -> list[float]:
    """Intervals from a Gamma distribution: independent of each other, so that a high coefficient of
    variation means clumps of requests, and the load is the same in every minute."""
    return arrival_times(count, rate, 1 / cv**2, seed)


def surge_arrivals(
    count: int, rate: float, cv: float, seed: int, *, window: float = 60.0, local_cv: float = 1.0
) -> list[float]:
    """Arrivals whose rate differs from window to window, so that their intervals have about this
    coefficient of variation over all, and a lower one in each window.

    Rates are lognormal with log-variance ``s``: then intervals of coefficient of variation c inside
    a window have ``cv ** 2 + 1 = (c ** 2 + 1) exp(s)`` over all. Real traces look like this: the
    Azure code trace has 13 over all and 3.2 inside a minute.

    Args:
        count: Number of requests.
        rate: Mean arrivals a second.
        cv: Of the intervals, over all.
        seed: Fixes the draw.
        window: Seconds of a window.
        local_cv: Inside a window, at most ``cv``.
    """
    local = min(local_cv, cv)
    variance = math.log((cv**2 + 1) / (local**2 + 1))
    random = np.random.default_rng(seed)
    windows = max(2, math.ceil(count / rate / window))
    # Stratified, so that a short run has its share of quiet and busy windows.
    strata = (random.permutation(windows) + 0.5) / windows
    rates = np.exp(math.sqrt(variance) * _normal_quantiles(strata))
    counts = np.floor(count * rates.cumsum() / rates.sum() + 0.5).astype(int)
    times: list[float] = []
    for i, (before, until) in enumerate(zip([0, *counts[:-1]], counts, strict=True)):
        inside = int(until - before)
        drawn = arrival_times(inside, inside / window, 1 / local**2, seed + 1 + i) if inside else []
        times += [i * window + at for at in drawn]
    return times


def _normal_quantiles(shares: np.ndarray) -> np.ndarray:
    return np.array([NormalDist().inv_cdf(float(share)) for share in shares])


def servegen_span(
    path: Path, count: int, rate: float, seed: int, *, begin: float, seconds: float
) -> list[float]:
    """Draw about so many arrivals that have the shape of a longer span of a ServeGen archive
    (arXiv:2505.09999), such as a day: each client comes as much more seldom as the span has more
    requests, with its own burstiness, and time is then shortened to the mean rate.

    Args:
        path: The archive (.tar, .tar.xz): a file a client, rows of window, rate, CV, family, shape
            and scale.
        count: Expected number of requests.
        rate: Mean arrivals a second, after scaling.
        seed: Fixes the draw.
        begin: Seconds of the archive at which to begin.
        seconds: Of the archive, whole windows of 600.

    Raises:
        UserError: the archive cannot be read or has no requests in the span.
    """
    random, times, clients = np.random.default_rng(seed), [], _servegen(path)
    end = begin + seconds
    total = sum(row.rate for rows in clients for row in rows if begin <= row.start < end)
    if not total:
        raise UserError(f"{path} has no requests from {begin} s to {end} s")
    share = count / (total * _SERVEGEN_WINDOW)
    for client in clients:
        times += _drawn(client, random, begin, end, share)
    shortened = count / rate / seconds
    return [(at - begin) * shortened for at in sorted(times)]


@dataclass(frozen=True)
class _ClientWindow:
    """What one client of a ServeGen archive does for 600 s."""

    start: float
    rate: float
    family: str
    shape: float
    scale: float


def _servegen(path: Path) -> list[list[_ClientWindow]]:
    """The clients of an archive, without windows in which nobody comes."""
    clients = []
    try:
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda each: each.name):
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and member.name.endswith(".csv"):
                    lines = io.TextIOWrapper(file, "utf-8").read().splitlines()
                    clients.append([row for row in map(_window, lines) if row is not None])
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(f"cannot read the ServeGen archive {path}: {error}") from error
    return clients


def _window(line: str) -> _ClientWindow | None:
    start, rate, _, family, *rest = line.strip().split(",")
    if not float(rate) or not family:
        return None
    return _ClientWindow(float(start), float(rate), family.lower(), float(rest[0]), float(rest[1]))


def _drawn(
    client: Sequence[_ClientWindow],
    random: np.random.Generator,
    begin: float,
    end: float,
    share: float,
) -> list[float]:
    """Arrivals of one client in a span, the given share of them."""
    times: list[float] = []
    for window in client:
        if not begin <= window.start < end:
            continue
        expected = int(2 * share * window.rate * _SERVEGEN_WINDOW) + 16
        if window.family.startswith("weibull"):
            gaps = window.scale * random.weibull(window.shape, expected)
        else:
            gaps = random.gamma(window.shape, window.scale, expected)
        arrived = window.start + np.cumsum(gaps / share)
        times += arrived[arrived < window.start + _SERVEGEN_WINDOW].tolist()
    return times


def with_lengths(
    arrivals: Sequence[float],
    entries: Sequence[TraceEntry],
    *,
    prompt_scale: float = 1.0,
    output_scale: float = 1.0,
    seed: int = 0,
) -> list[SimRequest]:
    """Requests that come at these times, with lengths drawn from a trace.

    Args:
        arrivals: Seconds.
        entries: The trace.
        prompt_scale: Factor on prompts; each keeps at least a token.
        output_scale: Factor on outputs; likewise.
        seed: Fixes the draw.
    """
    drawn = np.random.default_rng(seed).integers(0, len(entries), len(arrivals))
    return [
        SimRequest(
            at,
            _scaled(entries[i].input_length, prompt_scale),
            _scaled(entries[i].output_length, output_scale),
        )
        for at, i in zip(arrivals, drawn.tolist(), strict=True)
    ]


def from_trace(
    path: Path, count: int | None = None, *, rate: float | None = None, scale: float = 1.0
) -> list[SimRequest]:
    """The requests of an Azure or Mooncake trace in their order.

    Args:
        path: The trace.
        count: How many; by default all.
        rate: Arrivals a second to which time is scaled; by default those of the trace.
        scale: Factor on lengths.

    Raises:
        UserError: see `read_trace`.
    """
    entries = read_trace(path, count)
    length = entries[-1].arrival
    stretch = 1.0 if rate is None or not length else len(entries) / rate / length
    return [
        SimRequest(
            entry.arrival * stretch,
            _scaled(entry.input_length, scale),
            _scaled(entry.output_length, scale),
        )
        for entry in entries
    ]


def interval_cv(workload: Workload) -> float:
    """Coefficient of variation of the times between arrivals."""
    gaps = np.diff([request.arrival for request in workload])
    return float(gaps.std() / max(gaps.mean(), _LEAST_GAP))


def limited(workload: Workload, max_tokens: int) -> list[SimRequest]:
    """The same requests, with prompt and output cut so that together they have at most so many
    tokens."""
    cut = []
    for request in workload:
        output = min(request.output, max_tokens - 1)
        prompt = min(request.prompt, max_tokens - output)
        cut.append(replace(request, prompt=prompt, output=output))
    return cut


def _scaled(length: int, scale: float) -> int:
    return max(1, round(length * scale))
