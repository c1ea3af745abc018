"""A step that belongs to no request: what two runs must agree on before one follows the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fjx.cluster.executor import ClusterExecutor
from fjx.errors import RegranularizationError, StageLostError
from fjx.pipeline.batch import Batch
from fjx.pipeline.limits import Limits
from fjx.regranularization.probe import two_tokens

_TOLERANCE = 0.02
"""Largest difference of two log-probabilities. Another tensor degree sums in another order."""


class Probe:
    """Sends two tokens through runs; they write page 0 alone, which is never handed out."""

    def __init__(self, executors: Sequence[ClusterExecutor]) -> None:
        """``executors``: the one that serves, and those that shall follow it."""
        batch = _probe(executors[0].limits)
        self._executors = tuple(executors)
        self._outputs = [executor.dispatch(batch) for executor in executors]

    @property
    def done(self) -> bool:
        """Whether all runs have answered, alike.

        Raises:
            RegranularizationError: a run gives something else.
            StageLostError: a stage is lost.
        """
        if not all(output.tokens.is_ready() for output in self._outputs):
            for executor in self._executors:
                if executor.failure is not None:
                    raise StageLostError(executor.failure)  # what it promised may never come
            return False
        values = []
        for output in self._outputs:
            output.read_tokens()
            _, _, best, _ = output.read_logprobs()
            values.append(best[0])
        for number, got in enumerate(values[1:], start=1):
            off = float(np.abs(got - values[0]).max())
            if not off <= _TOLERANCE:
                raise RegranularizationError(
                    f"replica {number} of the new plan gave other log-probabilities in its test "
                    f"step: off by {off:.3g}, at most {_TOLERANCE:g} is expected"
                )
        return True


def _probe(limits: Limits) -> Batch:
    layout = limits.layout(limits.row_buckets[0])
    return Batch(
        packed=two_tokens(layout),
        num_rows=layout.rows,
        num_samples=1,
        sample_bucket=limits.coarse_sample_buckets[0],
        sampling=None,
        edits=None,
        pending_slot=None,
        logprobs=True,
        scored=np.full(layout.samples, -1, np.int32),
    )
