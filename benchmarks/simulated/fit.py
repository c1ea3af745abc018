"""What steps cost, from steps that were seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from simulated.measure import StepSeen

from fjx.pipeline.buckets import bucket_for
from fjx.sim.costs import StageCosts, table_costs

_TRUSTED = 3
"""Steps of a bucket from which its cost is taken; others are interpolated."""
_OUTLIER = 4.0
"""Deviations beyond so many times the median one are left out: the machine did something else."""


@dataclass(frozen=True)
class Fit:
    """Costs, and how well they explain what was seen."""

    costs: StageCosts
    steps: int
    median_error: float
    """Relative, of a single step."""
    seconds_by_rows: dict[int, float]
    sample_seconds: float
    pair_seconds: float


def fit_costs(steps: Sequence[StepSeen], buckets: tuple[int, ...]) -> Fit:
    """Non-negative least squares, each step relative to what its size usually takes: a cost for
    each bucket of rows, and one for each row that chooses a token and for each pair of a row and a
    token that it attends to."""
    counts = Counter(bucket_for(each.rows, buckets) for each in steps)
    known = [bucket for bucket in buckets if counts[bucket] >= _TRUSTED]
    used = [each for each in steps if bucket_for(each.rows, buckets) in known]
    features = np.array(
        [
            [float(bucket_for(e.rows, buckets) == bucket) for bucket in known]
            + [e.samples, e.pairs * 1e-3]
            for e in used
        ]
    )
    seconds = np.array([each.seconds for each in used])
    # By what such steps usually take, not by their own time: where the host was held up, it reads
    # two steps at once, and the second one seems to have taken none.
    by_bucket = {
        bucket: float(np.median([e.seconds for e in used if bucket_for(e.rows, buckets) == bucket]))
        for bucket in known
    }
    usual = np.array([by_bucket[bucket_for(each.rows, buckets)] for each in used])
    kept = np.ones(len(used), bool)
    for _ in range(4):
        weighted = features[kept] / usual[kept, None]
        found, _ = nnls(weighted, seconds[kept] / usual[kept])
        errors = np.abs(features @ found - seconds) / usual
        kept = errors <= _OUTLIER * max(float(np.median(errors)), 1e-3)
    by_rows = np.maximum.accumulate(found[: len(known)])
    table = [0.0]
    for rows in range(1, buckets[-1] + 1):
        table.append(float(np.interp(bucket_for(rows, buckets), known, by_rows)))
    sample, pair = float(found[-2]), float(found[-1]) * 1e-3
    return Fit(
        costs=table_costs(table, sample_seconds=sample, pair_seconds=pair),
        steps=len(used),
        median_error=float(np.median(errors)),
        seconds_by_rows=dict(zip(known, by_rows.tolist(), strict=True)),
        sample_seconds=sample,
        pair_seconds=pair,
    )
