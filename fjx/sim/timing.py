"""When the steps of a pipeline end: the inner loop, compiled.

As in `fjx.sharding.timeline`, a stage takes the microbatches of a step in order, and begins one
when it is free and the stage before has finished it; the first stage begins a microbatch when the
one of the step before has left the last stage, because its tokens feed it. On top of that, a step
begins when the host has sent it, which is when the step before the last one was read.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, fastmath=False)
def run_steps(
    ends, free, sampled, rows, samples, pairs, context, sent, prior, host_seconds,
    compute, read, fixed, sample_seconds, pair_seconds, context_seconds,
):  # fmt: skip
    """Run identical steps: each request has as many rows in each, and grows by them.

    Args:
        ends: [steps], is filled: when each step has left the last stage.
        free: [S], is updated: when each stage is free.
        sampled: [M], is updated: when each microbatch's tokens are there.
        rows, samples, pairs, context: [M], of the first step; the last two grow.
        sent: When the host sends the first step.
        prior: When the step in flight ends.
        host_seconds: Of the host's work, for each step.
        compute, read, fixed, sample_seconds, pair_seconds, context_seconds: See
            `fjx.sim.costs`.
    """
    stages = len(free)
    last = prior
    for i in range(len(ends)):
        if i > 0:
            sent = max(sent, last)
            last = ends[i - 1]
        end = 0.0
        for m in range(len(rows)):
            n = rows[m]
            if n == 0:
                continue
            ready = max(sampled[m], sent + host_seconds)
            for s in range(stages):
                busy = compute[s, n] + sample_seconds[s] * samples[m]
                busy += pair_seconds[s] * (pairs[m] + i * n)
                traffic = read[s, n] + context_seconds[s] * (context[m] + i * n)
                begin = max(ready, free[s])
                ready = begin + max(busy, traffic) + fixed[s, n]
                free[s] = ready
            sampled[m] = ready
            end = max(end, ready)
        ends[i] = end


def warm_up() -> None:
    """Compile, so that no simulation's first step does."""
    one, none = np.zeros(1), np.zeros((1, 2))
    counts = np.ones(1, np.int64)
    run_steps(
        one.copy(), one.copy(), one.copy(), counts, counts, one, one, 0.0, 0.0, 0.0,
        none, none, none, one, one, one,
    )  # fmt: skip
