"""Requests that come: how bursty, how long, and what they share."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from fjx.bench.traces import TraceEntry
from fjx.errors import UserError
from fjx.sim.workload import (
    SimRequest,
    from_trace,
    gamma_arrivals,
    interval_cv,
    servegen_span,
    surge_arrivals,
    with_lengths,
)


def cv_of(times: list[float]) -> float:
    return interval_cv([SimRequest(at, 1, 1) for at in times])


@pytest.mark.parametrize("cv", [1.0, 2.0, 4.0])
def test_drawn_arrivals_have_their_rate_and_burstiness(cv: float) -> None:
    gamma = gamma_arrivals(40_000, 20.0, cv, 0)
    surges = surge_arrivals(40_000, 20.0, cv, 0)
    assert gamma[-1] == pytest.approx(2000)
    assert len(surges) == 40_000
    assert surges == sorted(surges)
    assert cv_of(gamma) == pytest.approx(cv, rel=0.1)
    assert cv_of(surges) == pytest.approx(cv, rel=0.35)


def test_surges_differ_from_minute_to_minute_and_gamma_arrivals_do_not() -> None:
    def spread(times: list[float]) -> float:
        counts, _ = np.histogram(times, bins=np.arange(0, 1201, 60))
        return float(counts.std() / counts.mean())

    assert spread(gamma_arrivals(24_000, 20.0, 4.0, 1)) < 0.3
    assert spread(surge_arrivals(24_000, 20.0, 4.0, 1)) > 0.8


def test_lengths_are_scaled_and_never_empty() -> None:
    entries = [TraceEntry(0.0, 100, 3)]
    (request,) = with_lengths([1.5], entries, prompt_scale=0.5, output_scale=0.1)
    assert request == SimRequest(1.5, 50, 1)


def test_a_trace_is_stretched_to_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "\n".join(
            f'{{"timestamp": {1000 * i}, "input_length": 1024, "output_length": 8, '
            f'"hash_ids": [1, {i}]}}'
            for i in range(5)
        )
    )
    requests = from_trace(path, rate=10.0, scale=0.5)
    assert requests[-1].arrival == pytest.approx(0.5)


def test_a_span_of_a_servegen_archive_keeps_its_shape_at_any_rate(tmp_path: Path) -> None:
    # 600 s with a fifth of the requests, 600 s with the others, 600 s that are not asked for.
    rows = "0,2.0,1.0,Gamma,1.0,0.5\n600,8.0,1.0,Gamma,1.0,0.125\n1200,9.0,1.0,Gamma,1.0,0.1\n"
    (tmp_path / "a.csv").write_text(rows)
    path = tmp_path / "clients.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "a.csv", "a.csv")
    times = servegen_span(path, 2000, 20.0, 0, begin=0.0, seconds=1200.0)
    assert len(times) == pytest.approx(2000, rel=0.1)
    assert 90 < times[-1] <= 100
    assert times == sorted(times)
    assert sum(at < 50 for at in times) / len(times) == pytest.approx(0.2, abs=0.03)
    with pytest.raises(UserError, match="has no requests from 1800"):
        servegen_span(path, 10, 20.0, 0, begin=1800.0, seconds=600.0)
