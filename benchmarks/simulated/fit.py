"""What steps cost, from steps that were seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression, nnls
from simulated.measure import StepSeen

from fjx.pipeline.buckets import bucket_for
from fjx.sim.costs import StageCosts, table_costs

_TRUSTED = 3
"""Steps of a bucket from which its cost is taken; others are interpolated."""
_TOGETHER = 4
"""Steps in a row that are taken together."""
_OUTLIER = 4.0
"""Deviations beyond so many times the median one are left out: the machine did something else."""


@dataclass(frozen=True)
class Fit:
    """Costs, and how well they explain what was seen."""

    costs: StageCosts
    steps: int
    median_error: float
    """Relative, of a few steps together."""
    seconds_by_rows: dict[int, float]
    sample_seconds: float
    pair_seconds: float


def fit_costs(runs: Sequence[Sequence[StepSeen]], buckets: tuple[int, ...]) -> Fit:
    """Non-negative least squares, each step relative to what its size usually takes: a cost for
    each bucket of rows (more rows cost no less), and one for each row that chooses a token and for
    each pair of a row and a token that it attends to.

    A few steps in a row are taken together: where the host is held up it reads two at once, and the
    second one seems to have taken no time.
    """
    steps = [step for run in runs for step in run]
    counts = Counter(bucket_for(each.rows, buckets) for each in steps)
    known = [bucket for bucket in buckets if counts[bucket] >= _TRUSTED]
    usual = {
        bucket: float(np.mean([e.seconds for e in steps if bucket_for(e.rows, buckets) == bucket]))
        for bucket in known
    }
    features, seconds, expected = [], [], []
    for run in runs:
        used = [each for each in run if bucket_for(each.rows, buckets) in usual]
        for begin in range(0, len(used) - _TOGETHER + 1, _TOGETHER):
            window = used[begin : begin + _TOGETHER]
            sizes = [bucket_for(each.rows, buckets) for each in window]
            samples, pairs = (sum(getattr(e, n) for e in window) for n in ("samples", "pairs"))
            features.append([*(float(sizes.count(b)) for b in known), samples, pairs * 1e-3])
            seconds.append(sum(each.seconds for each in window))
            expected.append(sum(usual[size] for size in sizes))
    matrix = np.array(features) / np.array(expected)[:, None]
    wanted = np.array(seconds) / np.array(expected)
    kept = np.ones(len(wanted), bool)
    for _ in range(4):
        found, _ = nnls(matrix[kept], wanted[kept])
        errors = np.abs(matrix @ found - wanted)
        kept = errors <= _OUTLIER * max(float(np.median(errors)), 1e-3)
    by_rows = isotonic_regression(found[: len(known)], weights=[counts[b] for b in known]).x
    table = [0.0]
    for rows in range(1, buckets[-1] + 1):
        table.append(float(np.interp(bucket_for(rows, buckets), known, by_rows)))
    sample, pair = float(found[-2]), float(found[-1]) * 1e-3
    return Fit(
        costs=table_costs(table, sample_seconds=sample, pair_seconds=pair),
        steps=len(steps),
        median_error=float(np.median(errors)),
        seconds_by_rows=dict(zip(known, by_rows.tolist(), strict=True)),
        sample_seconds=sample,
        pair_seconds=pair,
    )
